"""A request's body on its way in: neither too large nor too late, and known to be whole or not."""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serving.errors import BodyTooLargeError, BusyError, ClientGoneError, SlowRequestError
from serving.settings import Settings

DRAIN_BYTES = 64 * 2**20
"""Of a body that nobody wants, so much is read and thrown away before the answer: many clients look at the answer only
after they have sent everything, and would see a broken connection."""


class BodyBudget:
    """Bytes of bodies that a process holds for the requests under way; of its event loop alone."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_held_bytes
        self.held = 0

    def take(self, size: int) -> None:
        """Raises BusyError when there is no room for so many more."""
        if self.held + size > self._limit:
            raise BusyError(
                f"the bodies of the requests under way have {self._limit:,} bytes already (RELEVANCE_MAX_HELD_BYTES); "
                "ask again in 1 s",
                1,
            )
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size


class Body:
    """Stands between the server and the app as `receive`."""

    def __init__(self, headers: Headers, receive: Receive, settings: Settings, room: BodyBudget) -> None:
        length = headers.get("content-length", "")
        self._length = int(length) if length.isdigit() else None
        self.whole = not self._length and "transfer-encoding" not in headers
        """Nothing more of it will come."""
        self._waits = headers.get("expect", "").lower() == "100-continue"
        self._receive, self._settings = receive, settings
        self._until = asyncio.get_running_loop().time() + settings.read_s
        self._taken = 0
        self._room, self._held = room, 0

    def check(self) -> None:
        """Nothing, unless its announced length is too large already.

        Raises:
            BodyTooLargeError
        """
        if self._length is not None and self._length > self._settings.max_body_bytes:
            raise self._too_large(f"has {self._length:,} bytes")

    async def receive(self) -> Message:
        """The next part; once it is whole, waits for the client to go.

        Raises:
            BodyTooLargeError, SlowRequestError, ClientGoneError
            BusyError: too much is held for others.
        """
        if self.whole:
            return await self._receive()
        message = await self._next()
        if self._taken > self._settings.max_body_bytes:
            raise self._too_large("is larger")
        size = len(message.get("body", b""))
        self._room.take(size)
        self._held += size
        return message

    def leave(self) -> None:
        """Gives back the room that it took; the request has its answer."""
        self._room.give_back(self._held)
        self._held = 0

    async def drain(self) -> None:
        """Throws away what is still to come, as far as that is bearable."""
        if self._waits or (self._length or 0) > DRAIN_BYTES:
            return  # It was not sent yet, or will not end soon.
        with contextlib.suppress(SlowRequestError, ClientGoneError):
            while not self.whole and self._taken <= DRAIN_BYTES:
                await self._next()

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            raise SlowRequestError(
                f"the body did not arrive in {self._settings.read_s:g} s (RELEVANCE_READ_S)"
            ) from error
        if message["type"] != "http.request":
            raise ClientGoneError("the client closed the connection before its body had arrived")
        self._taken += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        return message

    def _too_large(self, has: str) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"the body {has}; the limit is {self._settings.max_body_bytes:,} bytes (RELEVANCE_MAX_BODY_BYTES)"
        )
