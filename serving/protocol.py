"""HTTP/1.1 that does not wait for ever: a connection whose request head does not arrive in time is closed.

Uvicorn limits the pause between two requests only, so a client that sends a byte a second would hold its connection as
long as it likes. How long a body may take is the matter of `serving.edge`, which can answer.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Protocol(H11Protocol):
    """Uvicorn's protocol with a limit on the time from the first byte of a request, or from connecting, to its head."""

    def __init__(self, *args: Any, head_s: float, **knobs: Any) -> None:
        super().__init__(*args, **knobs)
        self._head_s = head_s
        self._late: asyncio.TimerHandle | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(self._head_s, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Idle is a peer whose next head is not complete; bytes of it have just come.
        self._begun = self.conn.their_state is h11.IDLE
        if not self._begun:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(self._head_s, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self._begun:
            self.transport.write(LATE)
        self.transport.close()
