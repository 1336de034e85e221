"""Hides passwords of URLs in everything that is written down or shown: manifests, pointers, messages."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_USER_AND_PASSWORD = re.compile(r"(://[^\s/:@'\"]*:)[^@\s'\"]+(?=@)")
_SECRET = r"[a-z_]*(?:password|passwd|pwd|secret|token|api_?key|odbc_connect)"
_NAME = re.compile(rf"(?i){_SECRET}")
_PARAMETER = re.compile(rf"(?i)([?&;]{_SECRET}=)[^&;\s'\"]+")


def hide_passwords(text: str) -> str:
    """The text with the password of each URL, and each query parameter that holds one, replaced by three stars."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER_AND_PASSWORD.sub(rf"\1{HIDDEN}", text))


def is_secret(name: str) -> bool:
    """Whether a query parameter of this name holds a password: `sslpassword`, `api_key`, `odbc_connect`, …"""
    return _NAME.fullmatch(name) is not None


def without_passwords(value: Any) -> Any:
    """A plain value in which `hide_passwords` was applied to every string, keys of objects included.

    Lists stay lists and tuples stay tuples.
    """
    if isinstance(value, str):
        return hide_passwords(value)
    if isinstance(value, Mapping):
        return {hide_passwords(name): without_passwords(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_passwords(item) for item in value)
    return value
