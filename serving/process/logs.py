"""Log lines as plain text or JSON."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from pipeline.secrets import hide_passwords_in_logs, may_hold_password, without_passwords

PLAIN = "%(asctime)s  %(message)s"
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)


def write_log(form: str) -> None:
    """Writes log lines to standard error; no line holds a text of a request.

    Args:
        form: json, plain, or auto, which is plain where standard error is a terminal.
    """
    hide_passwords_in_logs()
    plain = form == "plain" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(PLAIN, "%H:%M:%S") if plain else JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, and the values under `facts` in its `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_text:
            event["traceback"] = record.exc_text
        elif record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        # The line escapes no letter and no slash, so it shows what any of its strings may hold.
        line = _ENCODER.encode(event)
        return _ENCODER.encode(without_passwords(event)) if may_hold_password(line) else line
