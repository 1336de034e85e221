"""HTTP/1.1 that does not wait for ever: a connection whose request head does not arrive in time is closed, and so is
one whose client does not read what it asked for.

Uvicorn limits the pause between two requests only, so a client that sends a byte a second, or reads none, would hold
what it takes as long as it likes. How long a body may take is the matter of `serving.api.middleware`, which can answer.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Protocol(H11Protocol):
    """Uvicorn's protocol with a limit on the time from the first byte of a request, or from connecting, to its head;
    and on the time for which the network takes nothing more of an answer."""

    def __init__(self, *args: Any, patience_s: float, **knobs: Any) -> None:
        super().__init__(*args, **knobs)
        self._patience_s = patience_s
        self._unread: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(self._patience_s, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Idle is a peer whose next head is not complete; bytes of it have just come.
        self._begun = self.conn.their_state is h11.IDLE
        if not self._begun:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(self._patience_s, self._give_up)

    def pause_writing(self) -> None:
        super().pause_writing()
        # Not closed, which would wait until all is read.
        self._unread = self.loop.call_later(self._patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._read()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._read()
        super().connection_lost(exc)

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self._begun:
            self.transport.write(LATE)
        self.transport.close()
