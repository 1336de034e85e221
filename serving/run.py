"""Starts the service: binds the port, sets up the log, then serves in this process or in several."""

import errno
import ipaddress
import json
import logging
import socket
import sys
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import InputError
from serving.settings import Settings, strange

PLAIN = "%(asctime)s  %(message)s"
BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish for at most `drain_s`.

    Raises:
        MissingError: there is no such release.
        ArtifactError: the release is damaged or does not fit this machine.
        InputError: the port is in use, or the address is not of this machine.
    """
    write_log(settings.log)
    if names := strange():
        log.warning("no such setting, so ignored: %s; serving/settings.py lists them", ", ".join(names))
    with listen(settings) as listener:
        host = listener.getsockname()[0]
        if not (settings.api_keys or settings.api_keys_file or ipaddress.ip_address(host).is_loopback):
            log.warning("%s: open to the network without a key; `relevance key` makes one for RELEVANCE_API_KEYS", host)
        if settings.workers > 1:
            from serving import workers

            workers.Supervisor(settings, listener).run()
        else:
            from serving import process  # The models' libraries load in the process that runs them.

            process.run(settings, listener)


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        InputError: the port is in use, or the address is not of this machine.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"{where}: not an address ({error}); give --host 127.0.0.1 or 0.0.0.0") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Head and body of an answer are two writes: the second would wait for the client's delayed acknowledgement of
        # the first, 40 ms. Connections take this over; asyncio sets it only where a socket names its protocol.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reasons = {
            errno.EADDRINUSE: "the port is in use; stop what listens there, or give another with --port (0 for any)",
            errno.EACCES: "this user may not listen there; give a port above 1023 with --port",
            errno.EADDRNOTAVAIL: "no address of this machine; give --host 127.0.0.1 or 0.0.0.0",
        }
        raise InputError(f"{where}: {reasons.get(error.errno or 0, error)}") from error
    return listener


def announce(who: str, listener: socket.socket) -> None:
    """Logs where the service listens."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("%s: serving on http://%s:%d", who, shown, port, extra={"facts": {"port": port}})


def write_log(form: str) -> None:
    """Writes each log event to standard error: a line of JSON, or plain words; auto is plain where that is a terminal.

    Texts of requests are in no event.
    """
    plain = form == "plain" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(PLAIN, "%H:%M:%S") if plain else JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """An event as JSON: time, level, logger, message, and the `facts` it was logged with."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)
