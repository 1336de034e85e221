"""The listening socket, which all worker processes of one service share."""

import errno
import logging
import socket

from pipeline.errors import InputError
from serving.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""


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
