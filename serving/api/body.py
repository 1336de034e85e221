"""Reads a request's body: checks that it is announced as JSON, and limits its size and its time."""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serving.api.paths import Endpoint
from serving.errors import BodyTooLargeError, BusyError, ClientGoneError, ContentTypeError, SlowRequestError
from serving.settings import Settings

DRAIN_BYTES = 64 * 2**20
"""Bytes of an unwanted body that are read and thrown away before the answer: many clients look at the answer only
after they have sent everything, and would see a broken connection."""

SMALL_BYTES = 64 * 2**10
"""Limit of bodies that hold no documents and no texts, such as those of administrators."""


class BodyBudget:
    """Bytes of bodies that a process holds for the requests under way; used by its event loop alone."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_held_bytes
        self.held = 0

    def take(self, size: int) -> None:
        """Reserves `size` bytes; raises BusyError where the limit has no room for them."""
        if self.held + size > self._limit:
            raise BusyError(
                f"the bodies of the requests under way have {self._limit:,} bytes already (RELEVANCE_MAX_HELD_BYTES); "
                "ask again in 1 s",
                1,
            )
        self.held += size

    def give_back(self, size: int) -> None:
        """Frees `size` bytes."""
        self.held -= size


class Body:
    """Stands between the server and the app as `receive`."""

    def __init__(
        self, headers: Headers, receive: Receive, settings: Settings, budget: BodyBudget, endpoint: Endpoint
    ) -> None:
        length = headers.get("content-length", "")
        self._length = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        self.complete = not self._length and "transfer-encoding" not in headers
        """Whether all of the body has been received."""
        self._waits_for_continue = headers.get("expect", "").lower() == "100-continue"
        self._headers, self._receive, self._settings = headers, receive, settings
        self._limit = settings.max_body_bytes if endpoint.scoring else min(SMALL_BYTES, settings.max_body_bytes)
        self._until = asyncio.get_running_loop().time() + settings.read_s
        self._taken = 0
        self._budget, self._held = budget, 0

    def check(self) -> None:
        """Checks what the head says about the body.

        Raises:
            ContentTypeError: it is not announced as JSON, or is compressed.
            BodyTooLargeError: its announced length is beyond the limit.
        """
        if self.complete:
            return
        self._check_type()
        self._check_encoding()
        if self._length is not None and self._length > self._limit:
            raise self._too_large(f"has {self._length:,} bytes")

    async def receive(self) -> Message:
        """The next part; once the body is complete, waits until the client leaves.

        Raises:
            BodyTooLargeError: the body is beyond the limit.
            SlowRequestError: the rest of the body did not arrive in time.
            ClientGoneError: the client has closed the connection.
            BusyError: the bodies of other requests hold all the bytes that the settings allow.
        """
        if self.complete:
            return await self._receive()
        message = await self._next()
        if self._taken > self._limit:
            raise self._too_large("is larger")
        size = len(message.get("body", b""))
        self._budget.take(size)
        self._held += size
        return message

    def leave(self) -> None:
        """Gives back the room that the body took; the request has its answer."""
        self._budget.give_back(self._held)
        self._held = 0

    async def drain(self) -> None:
        """Reads and discards the rest of the body.

        Does nothing where more than DRAIN_BYTES is announced, or where the client waits for "100 Continue" before it
        sends the body.
        """
        if self._waits_for_continue or (self._length or 0) > DRAIN_BYTES:
            return
        with contextlib.suppress(SlowRequestError, ClientGoneError):
            while not self.complete and self._taken <= DRAIN_BYTES:
                await self._next()

    def _check_type(self) -> None:
        """Lets JSON pass, and a body without any type from a client that is no browser.

        A web page may send text/plain, a form, or a body without a type to any address without asking; it may send
        JSON only after the service has allowed it, which this one never does.
        """
        sent = self._headers.get("content-type")
        if sent is None and "origin" not in self._headers:
            return
        media_type = (sent or "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            named = f"content-type is {media_type[:60]!r}" if sent else "content-type is missing"
            raise ContentTypeError(f"{named}; send the body as application/json")

    def _check_encoding(self) -> None:
        encoding = self._headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise ContentTypeError(f"content-encoding is {encoding[:60]!r}; send the body as it is, uncompressed")

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
        self.complete = not message.get("more_body", False)
        return message

    def _too_large(self, problem: str) -> BodyTooLargeError:
        setting = " (RELEVANCE_MAX_BODY_BYTES)" if self._limit == self._settings.max_body_bytes else ""
        return BodyTooLargeError(f"the body {problem}; the limit is {self._limit:,} bytes{setting}")
