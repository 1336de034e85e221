"""Hides passwords of URLs in everything that is written down or shown: manifests, pointers, messages."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_USER_AND_PASSWORD = re.compile(r"(://[^\s/:@'\"]*:)[^@\s'\"]+(?=@)")
_PARAMETER = re.compile(r"(?i)([?&;][a-z_]*(?:password|passwd|pwd|secret|token|api_?key)=)[^&;\s'\"]+")


def hide_passwords(text: str) -> str:
    """The text with the password of each URL, and each query parameter that holds one, replaced by three stars."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER_AND_PASSWORD.sub(rf"\1{HIDDEN}", text))


def without_passwords(value: Any) -> Any:
    """A JSON value in which `hide_passwords` was applied to every string, keys of objects included."""
    if isinstance(value, str):
        return hide_passwords(value)
    if isinstance(value, Mapping):
        return {hide_passwords(name): without_passwords(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_passwords(item) for item in value]
    return value
