"""Hides passwords of URLs in everything that is written down or shown: manifests, pointers, messages, log lines."""

import logging
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_USER_AND_PASSWORD = re.compile(r"(://[^\s/:@'\"]*:)[^\s'\"]+(?=@)")
_SECRET = r"[a-z_]*(?:password|passwd|pwd|secret|token|api_?key|odbc_connect)"
_NAME = re.compile(rf"(?i){_SECRET}")
_PARAMETER = re.compile(rf"(?i)([?&;]{_SECRET}=)[^&;\s'\"]+")
_TOKEN_AS_USER = re.compile(r"(://)[^\s/:@'\"]{20,}(?=@)")
"""An access token in the place of a user name, `https://TOKEN@host`: a name of 20 characters or more, no password."""
_ASSIGNED = re.compile(
    r"(?i)(\b[a-z_]*(?:password|passwd|pwd)['\"]?\s*[=:]\s*)(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s'\",;&}]+)"
)
"""A password outside a URL: `host=db password=…`, `PWD=…;`, `{'password': '…'}`."""


_VARIABLE = re.compile(r"\$\{\w*\}")


def hide_passwords(text: str) -> str:
    """The text with three stars for each password: of a URL, of a query parameter, and after `password=` or `PWD=`."""
    if "://" in text:
        text = _PARAMETER.sub(rf"\1{HIDDEN}", _USER_AND_PASSWORD.sub(rf"\1{HIDDEN}", text))
        text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}", text)
    folded = text.casefold()  # As the expression ignores case. Nearly every text ends here; a log line has twenty.
    if "password" not in folded and "passwd" not in folded and "pwd" not in folded:
        return text
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


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

    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        print(hide_passwords("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)

    sys.excepthook = excepthook
    threading.excepthook = lambda args: (
        excepthook(args.exc_type, args.exc_value, args.exc_traceback)
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit)
        else None
    )
