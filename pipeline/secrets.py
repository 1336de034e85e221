"""Hides passwords of URLs in everything that is written down or shown: manifests, pointers, messages, log lines."""

import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = "***"
"""The text that stands in the place of a password."""

_USER_AND_PASSWORD = re.compile(r"(://[^\s/:@'\"]*:)([^\s'\"]+)(?=@)")
_KEYS = r"(?:api|access|account|private|secret)[_-]?key"
_TOKENS = r"(?:access|auth|bearer|refresh|security|session)[_-]?token"
_SECRET = rf"[a-z_-]*(?:password|passwd|pwd|secret|token|signature|{_KEYS}|odbc_connect)|sig"
"""A query parameter that holds a secret; `sig` is the signature of an address of Azure's storage."""
_NAME = re.compile(rf"(?i){_SECRET}")
_PARAMETER = re.compile(rf"(?i)([?&;](?:{_SECRET})=)([^&;\s'\"]+)")
_TOKEN_AS_USER = re.compile(r"(?<!abfs)(?<!az)(://)([^\s/:@'\"]{20,})(?=@)")
"""An access token in the place of a user name, `https://TOKEN@host`: a name of 20 characters or more, no password.
A container stands there in Azure's addresses."""
_ASSIGNED = re.compile(
    rf"(?i)(\b[a-z_]*(?:password|passwd|pwd|client_secret|{_KEYS}|{_TOKENS})['\"]?\s*[=:]\s*)"
    r"('[^'\n]*'|\"[^\"\n]*\"|\$\{\w*\}|[^\s'\",;&}]+)"
)
"""A secret outside a URL: `host=db password=…`, `PWD=…;`, `{'password': '…'}`, `aws_secret_access_key=…`."""
_BEARER = re.compile(r"(?i)(\bbearer\s+)([\w.~+/=-]{16,})")
"""The header of a request with an access token."""
_ASSIGNMENT = re.compile(r"(?:password|passwd|pwd|secret|key|token)['\"]?\s*[=:]")
"""The end of a name that `_ASSIGNED` may match, in a case-folded text: quicker to look for than the whole."""
_HINTS = ("://", "=", "bearer", "password", "passwd", "pwd", "secret", "key", "token")
"""One of these stands in every text that holds a secret, in whatever form."""

_VARIABLE = re.compile(r"\$\{\w*\}")


def hide_passwords(text: str) -> str:
    """The text with three stars for each secret: passwords and tokens of a URL, of its parameters, after `password=`.

    This is the one rule of the project on what a secret looks like; all that is shown or written down goes through it.
    """
    return _replace_secrets(text, lambda _: HIDDEN)


def secrets_as_variables(text: str, name: str) -> tuple[str, list[str]]:
    """The text with `${NAME}` for each secret, and the names; a variable that stands there already stays.

    Args:
        name: the environment variable of the first secret; the next ones are NAME_2, NAME_3, …
    """
    names: list[str] = []

    def variable(secret: str) -> str:
        if _VARIABLE.fullmatch(secret):
            return secret
        names.append(f"{name}_{len(names) + 1}" if names else name)
        return f"${{{names[-1]}}}"

    return _replace_secrets(text, variable), names


def _replace_secrets(text: str, stand_in: Callable[[str], str]) -> str:
    """The text with a stand-in for each secret."""
    if not may_hold_password(text):
        return text

    def replaced(match: re.Match[str]) -> str:
        return match[1] + stand_in(match[2])

    if "://" in text:
        text = _TOKEN_AS_USER.sub(replaced, _USER_AND_PASSWORD.sub(replaced, text))
    if "=" in text and ("?" in text or "&" in text or ";" in text):
        text = _PARAMETER.sub(replaced, text)
    folded = text.casefold()  # As the expressions ignore case.
    if "bearer" in folded:
        text = _BEARER.sub(replaced, text)
    return _ASSIGNED.sub(replaced, text) if _ASSIGNMENT.search(folded) else text


def may_hold_password(text: str) -> bool:
    """Whether the text is worth a look by expressions; otherwise it holds no secret. Nearly every text is not."""
    folded = text.casefold()
    return any(hint in folded for hint in _HINTS)


def holds_password(text: str) -> bool:
    """Whether a password stands in the text, and not only the name of an environment variable, `${NAME}`, for one."""
    named = _VARIABLE.sub("", text)
    return hide_passwords(named) != named


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


def hide_passwords_in_logs() -> None:
    """Hides passwords in every log record of this process from now on, and in tracebacks of errors that nobody caught.

    It changes the records themselves, not a handler, so handlers that a library adds later show no password either.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_passwords", False):
        return

    def hiding(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            return record  # A format that does not fit its values; the handler reports that.
        if (hidden := hide_passwords(message)) != message:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[0] is not None:
            lines = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (hidden := hide_passwords(lines)) != lines:
                record.exc_text, record.exc_info = hidden, None
        return record

    hiding.hides_passwords = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(hiding)

    sys.excepthook = lambda _kind, error, _trace: print_traceback(error)
    threading.excepthook = lambda args: (
        print_traceback(args.exc_value)
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit)
        else None
    )


def print_traceback(error: BaseException) -> None:
    """Prints the traceback of an error that nobody caught, without passwords, to standard error."""
    print(hide_passwords("".join(traceback.format_exception(error))), end="", file=sys.stderr)
