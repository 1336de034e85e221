"""The listening socket, which all worker processes of one service share."""

import contextlib
import ctypes
import errno
import logging
import select
import socket
import struct
import sys

from pipeline.errors import InputError
from serving.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted."""

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
"""Socket options of Linux: run a program of the classic Berkeley Packet Filter on each packet, and end that."""
DROP_NEW_CONNECTIONS = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load byte 13 of the TCP header, the flags
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # let it pass
    )
)


def listen(settings: Settings) -> socket.socket:
    """Opens the socket that listens at the address and port of the settings.

    Raises:
        InputError: the port is in use, or the address is not of this machine.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no domain can have, such as "..".
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


def refuse_new(listener: socket.socket) -> None:
    """Makes the kernel ignore new connections, so that those which it has taken can be accepted to the last one.

    A client that connects meanwhile tries again by itself after a second, and reaches the next process on this port
    or is refused. Other systems than Linux have no such filter; there, a connection that completes between the last
    accept and the close is lost.
    """
    if not sys.platform.startswith("linux"):
        return
    program = ctypes.create_string_buffer(DROP_NEW_CONNECTIONS, len(DROP_NEW_CONNECTIONS))
    instructions = len(DROP_NEW_CONNECTIONS) // 8
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", instructions, ctypes.addressof(program))
        )
    except OSError as error:  # A sandbox may forbid filters.
        log.warning("new connections cannot be held off while the service stops (%s)", error)


def accept_new(listener: socket.socket) -> None:
    """Ends what `refuse_new` began. A worker that ended alone leaves its filter on the shared socket."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):  # There is none.
            listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def has_waiting(listener: socket.socket) -> bool:
    """Whether the kernel holds a connection that nobody has accepted yet."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def announce(who: str, listener: socket.socket) -> None:
    """Logs where the service listens."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("%s: serving on http://%s:%d", who, shown, port, extra={"facts": {"port": port}})
