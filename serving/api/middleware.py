"""The middleware that every request passes on its way in and out, whichever endpoint answers it.

In: a record with an id, a deadline and the release that answers; then host name, key, content type, size of the body.
Out: headers that name the release and the time, and one JSON body for any error. Nothing that goes wrong inside
reaches a client as a traceback.
"""

import logging
import threading
import traceback

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.access import AccessControl
from serving.api.body import Body, BodyBudget
from serving.api.json_io import refusal
from serving.api.record import Recorder, RequestRecord, check_wish, seconds_for
from serving.api.request import Service
from serving.errors import ServingError
from serving.runtime.deadline import Deadline

log = logging.getLogger("serving.requests")


class ServiceMiddleware:
    """ASGI middleware around the app: opens a request's record, checks its head, answers its errors."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._recorder = Recorder(service.lifecycle, service.metrics, service.tracing)
        self._access = AccessControl(service.settings)
        self._budget = BodyBudget(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _strip_prefix(scope, self._service.settings.root_path)
        headers = Headers(scope=scope)
        record = self._recorder.begin(scope, headers)
        body = Body(headers, receive, self._service.settings, self._budget, record.endpoint)
        reply = Reply(send, record, body, self._service.draining)
        try:
            await self._answer(scope, headers, body, reply)
        finally:
            record.deadline.cancel()
            body.leave()
            self._recorder.end(record, reply.status)

    async def _answer(self, scope: Scope, headers: Headers, body: Body, reply: "Reply") -> None:
        record = reply.record
        try:
            seconds = seconds_for(headers, self._service.settings)
            if seconds != record.deadline.seconds:
                record.deadline = Deadline.after(seconds)
            self._access.check(scope, record.endpoint, headers)
            check_wish(headers)
            body.check()
            await self._app(scope, body.receive, reply)
        except ServingError as error:
            traceback.clear_frames(error.__traceback__)  # They hold what was made of the body.
            body.leave()
            await body.drain()
            await refusal(error, record.endpoint)(scope, body.receive, reply)
        except Exception:
            log.exception("request %s: failed", record.request_id)
            if reply.status:
                raise  # Half an answer is out; only breaking the connection tells the client.
            failure = ServingError(f"the service failed; its log has the reason under request {record.request_id}")
            await refusal(failure, record.endpoint)(scope, body.receive, reply)


class Reply:
    """Stands between the app and the server as `send`: adds the headers that every answer has."""

    def __init__(self, send: Send, record: RequestRecord, body: Body, draining: threading.Event) -> None:
        self.record = record
        self.status = 0
        """Status of the answer; 0 before it begins."""
        self._send, self._body, self._draining = send, body, draining

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_headers(MutableHeaders(scope=message))
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.record.request_id
        headers["x-total-time"] = str(round(1000 * self.record.seconds))
        headers["x-content-type-options"] = "nosniff"
        if self._draining.is_set() or not self._body.complete:
            headers["connection"] = "close"  # The next request is another process's, or the rest is not wanted.
        route = self.record.route
        if route is not None:
            headers["x-release"], headers["x-variant"] = route.searcher.release, route.variant


def _strip_prefix(scope: Scope, prefix: str) -> None:
    """Removes `Settings.root_path` from the path where a proxy has left it there."""
    if prefix and (scope["path"] + "/").startswith(prefix + "/"):
        scope["path"] = scope["path"][len(prefix) :] or "/"
        scope["raw_path"] = scope["path"].encode()
