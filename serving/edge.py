"""What every request passes on its way in and out, whichever endpoint it asks.

In: an id, the release that will answer it, its deadline, the API key, the size of its body. Out: headers that name the
release and the time, one log line without texts, one JSON body for any error. Nothing that goes wrong inside reaches
a client as a traceback.
"""

import asyncio
import contextlib
import logging
import threading
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import errors, keys
from serving.deadline import Deadline
from serving.errors import (
    AuthenticationError,
    BodyTooLargeError,
    BusyError,
    ClientGoneError,
    InvalidRequestError,
    ServingError,
    SlowRequestError,
)
from serving.lifecycle import Lifecycle
from serving.metrics import Metrics
from serving.wire import Json

OPEN_PATHS = {"/", "/livez", "/readyz", "/health", "/ping", "/metrics", "/docs", "/openapi.json", "/favicon.ico"}
"""Need no API key: probes cannot send one, and the pages hold no data."""

SCORING_PATHS = {"/rerank", "/v1/rerank", "/v2/rerank", "/search", "/v1/embeddings", "/embed"}
"""Counted as text-embeddings-inference counts its own, also when they fail before their items are known."""

OPENAI_PATHS = ("/v1/embeddings", "/v1/models")

DRAIN_BYTES = 64 * 2**20
"""Of a body that is too large, so much is read and thrown away before the answer: many clients look at the answer only
after they have sent everything, and would see a broken connection."""

log = logging.getLogger("serving.requests")


class Edge:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, metrics: Metrics, draining: threading.Event) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._draining = draining
        self._metrics = metrics
        self._settings = lifecycle.settings
        self._keys = keys.hashes(lifecycle.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        searcher = self._lifecycle.loaded
        request_id = _request_id(headers)
        state = scope.setdefault("state", {})
        state.update(searcher=searcher, facts={})
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                out["x-total-time"] = str(round(1000 * (time.perf_counter() - began)))
                out["x-content-type-options"] = "nosniff"
                if self._draining.is_set():
                    out["connection"] = "close"  # The next request belongs to another process.
                if searcher is not None:
                    out["x-release"] = searcher.release
            await send(message)

        self._metrics.began()
        try:
            try:
                state["deadline"] = Deadline.after(self._seconds(headers))
                self._authorise(scope["path"], headers)
                limited = await self._limited(headers, receive)
                await self._app(scope, limited, answer)
            except ServingError as error:
                await self._refuse(error, scope, receive, answer)
            except Exception:
                log.exception("request %s: failed", request_id)
                if status:
                    raise  # Half an answer is out; only breaking the connection tells the client.
                failed = ServingError(f"the service failed; its log has the reason under request {request_id}")
                await self._refuse(failed, scope, receive, answer)
        finally:
            self._finish(scope, status, time.perf_counter() - began, request_id)

    async def _refuse(self, error: ServingError, scope: Scope, receive: Receive, send: Send) -> None:
        response = refusal(error, scope["path"])
        await response(scope, receive, send)

    def _seconds(self, headers: Headers) -> float:
        """The request's time: what the client asks for, at most what the settings allow."""
        asked = headers.get("x-request-timeout-ms")
        if asked is None:
            return self._settings.deadline_s
        try:
            seconds = int(asked) / 1000
        except ValueError as error:
            raise InvalidRequestError(f"x-request-timeout-ms is {asked[:40]!r}; send whole milliseconds") from error
        if seconds <= 0:
            raise InvalidRequestError(f"x-request-timeout-ms is {asked[:40]}; it must be above 0")
        return min(seconds, self._settings.max_deadline_s)

    def _authorise(self, path: str, headers: Headers) -> None:
        if not self._keys or path in OPEN_PATHS:
            return
        # Clients differ: Bearer, the bare key, or a header of its own.
        sent = headers.get("authorization", "") or headers.get("x-api-key", "") or headers.get("api-key", "")
        sent = sent.removeprefix("Bearer ").removeprefix("bearer ").strip()
        if not keys.matches(sent, self._keys):
            what = "the API key is not known" if sent else "an API key is missing"
            raise AuthenticationError(f"{what}; send it as Authorization: Bearer KEY")

    async def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, raising once a body is too large or too late; at once when its announced length is too large."""
        limit, until = self._settings.max_body_bytes, asyncio.get_running_loop().time() + self._settings.read_s
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            if int(length) <= DRAIN_BYTES and headers.get("expect", "").lower() != "100-continue":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await _drain(receive)
            raise self._too_large(int(length))
        taken, whole = 0, False

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError as error:
                raise SlowRequestError(
                    f"the body did not arrive in {self._settings.read_s:g} s (RELEVANCE_READ_S)"
                ) from error
            if message["type"] != "http.request":
                raise ClientGoneError("the client closed the connection before its body had arrived")
            taken += len(message.get("body", b""))
            if taken > limit:
                raise self._too_large(None)
            whole = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self, length: int | None) -> BodyTooLargeError:
        has = f"has {length:,} bytes" if length is not None else "is larger"
        return BodyTooLargeError(
            f"the body {has}; the limit is {self._settings.max_body_bytes:,} bytes (RELEVANCE_MAX_BODY_BYTES)"
        )

    def _finish(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        state = scope["state"]
        facts = state["facts"]
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._metrics.ended(path, status, seconds, facts.get("items", 0 if path in SCORING_PATHS else None))
        level = logging.DEBUG if path in OPEN_PATHS else logging.INFO
        searcher = state["searcher"]
        log.log(
            level,
            "%s %s: %d in %.1f ms",
            *(scope["method"], path, status, 1000 * seconds),
            extra={
                "facts": {
                    "request_id": request_id,
                    "path": path,
                    "status": status,
                    "milliseconds": round(1000 * seconds, 2),
                    "release": searcher.release[:12] if searcher else None,
                    **facts,
                }
            },
        )


def refusal(error: ServingError, path: str) -> Json:
    """The answer for an error, as the clients of this path read it."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
    if isinstance(error, BusyError):
        headers = {"retry-after": str(error.retry_after)}
    return Json(errors.body(error, nested=path.startswith(OPENAI_PATHS)), status_code=error.status, headers=headers)


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if sent.isascii() and sent.isprintable() and 0 < len(sent) <= 64 else uuid.uuid4().hex


async def _drain(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
