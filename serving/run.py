"""Starts the service: one process, the release loaded before the first request, requests finished before it ends."""

import asyncio
import errno
import json
import logging
import signal
import socket
import sys
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import uvicorn

from pipeline.errors import InputError
from serving import app
from serving.lifecycle import Lifecycle
from serving.settings import Settings

PLAIN = "%(asctime)s  %(message)s"
KEEP_ALIVE_S = 75
"""Longer than the 60 s of common load balancers, which else send a request into a connection just closed."""

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish for at most `drain_s`.

    Raises:
        MissingError: there is no such release.
        ArtifactError: the release is damaged or does not fit this machine.
        InputError: the port is in use, or the address is not of this machine.
    """
    write_log()
    listener = listen(settings)
    try:
        lifecycle = Lifecycle(settings)
        lifecycle.start()
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server = uvicorn.Server(
            uvicorn.Config(
                app.create(lifecycle),
                log_config=None,
                access_log=False,  # `serving.edge` logs each request, without its texts.
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(settings.drain_s),
            )
        )
        log.info(
            "release %s: serving on http://%s:%d",
            lifecycle.current.release[:12],
            shown,
            port,
            extra={"facts": {"port": port}},
        )
        # Uvicorn drains and then sends the signal again, to whom it belonged before: to stop was what we wanted.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stopped)
        asyncio.run(server.serve(sockets=[listener]))
        log.info("stopped; running requests were finished")
    finally:
        listener.close()


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
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        reasons = {
            errno.EADDRINUSE: "the port is in use; stop what listens there, or give another with --port (0 for any)",
            errno.EACCES: "this user may not listen there; give a port above 1023 with --port",
            errno.EADDRNOTAVAIL: "no address of this machine; give --host 127.0.0.1 or 0.0.0.0",
        }
        raise InputError(f"{where}: {reasons.get(error.errno or 0, error)}") from error
    return listener


def write_log() -> None:
    """Writes each log event to standard error: a line of JSON, or plain words where that is a terminal.

    Texts of requests are in no event.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(PLAIN, "%H:%M:%S") if sys.stderr.isatty() else JsonLines())
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


def _stopped(number: int, frame: FrameType | None) -> None:
    """The drain is over; the process ends by returning."""
