"""What every request passes on its way in and out, whichever endpoint it asks.

In: an id, the release that will answer it, its deadline, the API key, the size of its body. Out: headers that name the
release and the time, one log line without texts, one JSON body for any error. Nothing that goes wrong inside reaches
a client as a traceback.
"""

import logging
import threading
import time
import traceback
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import admin, keys
from serving.api.body import Body, BodyBudget
from serving.api.json_io import refusal
from serving.api.paths import ADMIN_PREFIX, OPEN_PATHS, SCORING_PATHS, TRIAL_PATHS
from serving.errors import AuthenticationError, InvalidRequestError, ServingError
from serving.observability.metrics import Metrics
from serving.observability.tracing import Tracing
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.traffic import WISHES, Route
from serving.runtime.deadline import Deadline

log = logging.getLogger("serving.requests")


class ServiceMiddleware:
    """ASGI middleware around the whole app."""

    def __init__(
        self, app: ASGIApp, lifecycle: Lifecycle, metrics: Metrics, tracing: Tracing, draining: threading.Event
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._draining = draining
        self._tracing = tracing
        self._metrics = metrics
        self._settings = lifecycle.settings
        self._keys = keys.hashes(lifecycle.settings)
        self._room = BodyBudget(lifecycle.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        choice = self._choice(scope["path"], headers, request_id)
        state = scope.setdefault("state", {})
        state.update(choice=choice, facts={}, span=self._tracing.request(scope["method"], headers))
        body = Body(headers, receive, self._settings, self._room)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                out["x-total-time"] = str(round(1000 * (time.perf_counter() - began)))
                out["x-content-type-options"] = "nosniff"
                if self._draining.is_set() or not body.whole:
                    out["connection"] = "close"  # The next request is another process's, or the rest is not wanted.
                made_by: Route | None = state["choice"]
                if made_by is not None:
                    out["x-release"], out["x-variant"] = made_by.searcher.release, made_by.variant
            await send(message)

        self._metrics.began()
        try:
            try:
                state["deadline"] = Deadline.after(self._seconds(headers))
                self._authorise(scope, headers)
                _wish(headers)
                body.check()
                await self._app(scope, body.receive, answer)
            except ServingError as error:
                traceback.clear_frames(error.__traceback__)  # They hold what came of the body.
                body.leave()
                await body.drain()
                await self._refuse(error, scope, receive, answer)
            except Exception:
                log.exception("request %s: failed", request_id)
                if status:
                    raise  # Half an answer is out; only breaking the connection tells the client.
                failed = ServingError(f"the service failed; its log has the reason under request {request_id}")
                await self._refuse(failed, scope, receive, answer)
        finally:
            body.leave()
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
        except (ValueError, OverflowError) as error:
            raise InvalidRequestError(f"x-request-timeout-ms is {asked[:40]!r}; send whole milliseconds") from error
        if seconds <= 0:
            raise InvalidRequestError(f"x-request-timeout-ms is {asked[:40]}; it must be above 0")
        return min(seconds, self._settings.max_deadline_s)

    def _choice(self, path: str, headers: Headers, request_id: str) -> Route | None:
        """The release that answers this request from its beginning to its end; None before the first one."""
        live = self._lifecycle.loaded
        if live is None or path not in TRIAL_PATHS:
            return Route(live, "live") if live is not None else None
        sent = headers.get("x-canary")
        return self._lifecycle.rollout.choose(live, request_id, sent if sent in WISHES else None)

    def _authorise(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if path.startswith(ADMIN_PREFIX):
            client = scope.get("client")
            admin.authorise(self._settings, client[0] if client else "", path, headers)
            return
        if not self._keys or path in OPEN_PATHS:
            return
        sent = keys.sent(headers, "x-api-key", "api-key")
        if not keys.matches(sent, self._keys):
            what = "the API key is not known" if sent else "an API key is missing"
            raise AuthenticationError(f"{what}; send it as Authorization: Bearer KEY")

    def _finish(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        state = scope["state"]
        facts = state["facts"]
        route = scope.get("route")
        # Refused here, a request has no route yet.
        path = getattr(route, "path", None) or (scope["path"] if scope["path"] in SCORING_PATHS else "other")
        scoring = path in SCORING_PATHS and status != 401
        self._metrics.ended(path, status, seconds, facts.get("items", 0 if scoring else None))
        noted = {"http.status_code": status, "request_id": request_id, **facts}
        self._tracing.ended(state["span"], f"{scope['method']} {path}", noted)
        level = logging.DEBUG if path in OPEN_PATHS else logging.INFO
        choice: Route | None = state["choice"]
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
                    "release": choice.searcher.release[:12] if choice else None,
                    "variant": choice.variant if choice else None,
                    **facts,
                }
            },
        )
        if choice is not None and path in TRIAL_PATHS and (status == 200 or status >= 500):
            cascade = "reranked" in facts  # Ends when its time does, so its seconds say nothing.
            self._lifecycle.rollout.answered(
                choice,
                request_id,
                status=status,
                seconds=state.get("worked_s", 0.0),
                computed=0 if cascade else facts.get("misses", 0),
                asked=state.get("asked") if status == 200 else None,
            )


def _wish(headers: Headers) -> None:
    """Raises InvalidRequestError when the client wishes for something that there is not."""
    sent = headers.get("x-canary")
    if sent is not None and sent not in WISHES:
        raise InvalidRequestError(f"x-canary is {sent[:40]!r}; send {' or '.join(WISHES)}, or leave it out")


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if sent.isascii() and sent.isprintable() and 0 < len(sent) <= 64 else uuid.uuid4().hex
