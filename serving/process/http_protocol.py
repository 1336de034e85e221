"""HTTP/1.1 connections with limits: on waiting, on age, and on the number of requests.

Uvicorn limits only the pause between two requests. This protocol adds four rules.

- A request head that does not arrive in time is answered with 408, and a client that reads too little of its answer is
  cut off. `serving.api.body` limits the time for a body, because it can answer.
- A body in very many very small chunks, or with two statements of its length, is refused with 400, see `BodyParser`.
- A connection is closed after a number of requests or of seconds, always by the header `connection: close` of an
  answer. Clients that keep their connections therefore spread again over all workers after one was replaced.
- While the service shuts down, each answer closes its connection, and a connection on which no request arrives is
  closed after `GOODBYE_S`. A request that lies in the kernel's buffer at that moment is answered first.
"""

import array
import asyncio
import fcntl
import random
import termios
import threading
from dataclasses import dataclass
from typing import Any

import h11
from h11._connection import DEFAULT_MAX_INCOMPLETE_EVENT_SIZE
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.settings import Settings

REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
"""The answer to a client whose request does not arrive in time."""
GOODBYE_S = 1
"""Seconds after SIGTERM that a connection without a request stays open: its next request may be on the way."""
MIN_READ_BYTES = 2**18
"""Bytes of a waiting answer that a client must read within `read_s`. One on a slow line reads a large answer, such as
25 MB of vectors, for longer than that; one that reads a byte now and then would hold the answer's memory for days."""
AGE_SPREAD = 0.1
"""Share by which the age limits of connections differ, so that those opened together do not all end together."""


FREE_CHUNKS, MIN_CHUNK_BYTES = 2000, 64
"""A body may come in FREE_CHUNKS of any size; beyond, its chunks must have MIN_CHUNK_BYTES on average. Each takes the
event loop 10 µs, so a body of single bytes would hold up all other connections: P50 of a small request 1.3 s."""


class BodyParser(h11.Connection):
    """An HTTP/1.1 connection that refuses bodies in very many very small chunks, and bodies without a clear end.

    A request with both content-length and transfer-encoding may end elsewhere for a proxy than for this service, which
    would take the rest for a request of its own, past the proxy's checks (RFC 9112, section 6.3).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        """The next event. Raises h11.RemoteProtocolError, which uvicorn answers with 400, for such a body."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS and self._bytes < MIN_CHUNK_BYTES * self._chunks:
                raise h11.RemoteProtocolError("the body comes in too many small chunks")
        elif isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise h11.RemoteProtocolError("content-length and transfer-encoding are both there")
        return event


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one connection."""

    read_s: float
    """Seconds for a request head to arrive, and for a client to read the next MIN_READ_BYTES of an answer."""
    requests: int
    """Requests after which the connection is closed."""
    age_s: float
    """Seconds after which the connection is closed with its next answer."""

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        """The limits that the settings give."""
        return cls(settings.read_s, settings.connection_requests, settings.connection_s)


class LimitedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol under `ConnectionLimits`, which loses no request when the service shuts down."""

    def __init__(self, *args: Any, limits: ConnectionLimits, draining: threading.Event, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = BodyParser(h11.SERVER, DEFAULT_MAX_INCOMPLETE_EVENT_SIZE)
        self._limits, self._draining = limits, draining
        self._service = self.app
        self.app = self._answer
        self._requests = 0
        self._oldest = self.loop.time() + limits.age_s * random.uniform(1 - AGE_SPREAD, 1)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        """Bytes of the answer that had not gone out when `_write_timer` began."""
        self._head_began = False

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request to the service and closes the connection with its answer when a limit is reached."""
        self._requests += 1

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_last():
                headers = [item for item in message.get("headers", []) if item[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, CLOSE_HEADER]}
            await send(message)

        await self._service(scope, receive, send_closing)

    def _is_last(self) -> bool:
        """Whether this connection takes no further request."""
        limits = self._limits
        return self._draining.is_set() or self._requests >= limits.requests or self.loop.time() >= self._oldest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self._limits.read_s, self._end_late_head)
        if self._draining.is_set():
            self.shutdown()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # h11 calls the client idle until its head is complete; some bytes of the head have just arrived.
        self._watch_head(begun=self.conn.their_state is h11.IDLE)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        unread, _ = self.conn.trailing_data  # The next head may have begun with the bytes of the request before.
        self._watch_head(begun=self.conn.their_state is h11.IDLE and bool(unread))

    def _watch_head(self, *, begun: bool) -> None:
        """Bounds the time of a head that has begun to arrive; ends the bound of one that is complete."""
        self._head_began = begun
        if not begun:
            self._cancel_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.read_s, self._end_late_head)

    def shutdown(self) -> None:
        """Closes the connection after the answer to its present request, or soon when there is none."""
        self.timeout_keep_alive = GOODBYE_S  # Counts from the end of the present request.
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and not self._head_began:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(GOODBYE_S, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, unless a request has arrived that the event loop has not read yet."""
        if not self._has_unread_bytes():
            super().timeout_keep_alive_handler()

    def _has_unread_bytes(self) -> bool:
        return self._count_bytes(termios.FIONREAD) > 0

    def _count_bytes(self, queue: int) -> int:
        """Bytes in the kernel's buffer of this connection.

        Args:
            queue: FIONREAD for those that have come, TIOCOUTQ for those that have to go.
        """
        connection = self.transport.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:
            return 0
        count = array.array("i", [0])
        fcntl.ioctl(connection.fileno(), queue, count)
        return count[0]

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._cancel_write_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def _watch_reader(self) -> None:
        self._unread_bytes = self._count_unread()
        self._write_timer = self.loop.call_later(self._limits.read_s, self._end_slow_reader)

    def _end_slow_reader(self) -> None:
        """Cuts off a client that has read too little of its answer since the last look; else looks again later."""
        if self._unread_bytes - self._count_unread() >= MIN_READ_BYTES:
            self._watch_reader()
        else:
            self.transport.abort()  # To close would wait until the client has read everything.

    def _count_unread(self) -> int:
        """Bytes of answers that the client has not acknowledged: those that wait here, and in the kernel's buffer,
        which takes more only once a third of it is free."""
        return int(self.transport.get_write_buffer_size()) + self._count_bytes(termios.TIOCOUTQ)

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_late_head(self) -> None:
        """Closes a connection whose request head is late; says so when a part of it has arrived."""
        if self._head_began:
            self.transport.write(REQUEST_TIMEOUT)
        self.transport.close()
