"""The record of one request, from its head to its answer, and what is done with it at the end: metrics, a span, one
log line without texts, and the counts of a release on trial."""

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.api.paths import Access, Endpoint, find
from serving.errors import DeadlineError, InferenceError, InvalidRequestError, NotServedError
from serving.observability.metrics import Metrics
from serving.observability.tracing import Tracing
from serving.rollout.comparison import ComparedRequest
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.traffic import WISHES, AnsweredRequest, Route
from serving.runtime.deadline import Deadline
from serving.settings import Settings

log = logging.getLogger("serving.requests")


@dataclass(slots=True)
class RequestRecord:
    """The facts about one request; endpoints read it as `request.state.record` and add to it."""

    request_id: str
    method: str
    endpoint: Endpoint
    deadline: Deadline
    """Runs from the arrival of the head."""
    route: Route | None
    """The release that answers, from the beginning to the end of the request; None before the first one is loaded."""
    span: Any = None
    """The request's span; None when nothing is traced."""
    arrived: float = field(default_factory=time.perf_counter)
    fields: dict[str, Any] = field(default_factory=dict)
    """Counts that endpoints add to the log line and the span: items, hits, misses, reranked."""
    model_failed: bool = False
    """Whether a model raised an error, though the request was answered without it."""
    question: ComparedRequest | None = None
    """The request as releases on trial may get it; None before the work, or where it must not be kept."""
    private: bool = False
    """Whether the work began and the question must not be kept."""

    @property
    def seconds(self) -> float:
        """Seconds since the head arrived."""
        return time.perf_counter() - self.arrived


class Recorder:
    """Opens the record of each request and closes it."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, tracing: Tracing) -> None:
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._tracing = tracing

    def begin(self, scope: Scope, headers: Headers) -> RequestRecord:
        """The record of a request whose head has arrived; kept in the state of `scope`."""
        endpoint = find(scope["path"], scope["method"])
        request_id = _request_id(headers)
        record = RequestRecord(
            request_id=request_id,
            method=scope["method"],
            endpoint=endpoint,
            deadline=Deadline.after(self._lifecycle.settings.deadline_s),
            route=self._route(endpoint, headers, request_id),
            span=self._tracing.request(scope["method"], headers),
        )
        scope.setdefault("state", {})["record"] = record
        self._metrics.began()
        return record

    def end(self, record: RequestRecord, status: int) -> None:
        """Tells metrics, trace, log and rollout about a request whose answer went out.

        Args:
            status: status of the answer; 0 where none went out.
        """
        seconds = record.seconds
        self._measure(record, status, seconds)
        self._log(record, status, seconds)
        self._count_for_rollout(record, status)

    def _route(self, endpoint: Endpoint, headers: Headers, request_id: str) -> Route | None:
        live = self._lifecycle.loaded
        if live is None or not endpoint.rollouts:
            return Route(live, "live") if live is not None else None
        wish = headers.get("x-canary")
        return self._lifecycle.rollout.choose(live, request_id, wish if wish in WISHES else None)

    def _measure(self, record: RequestRecord, status: int, seconds: float) -> None:
        endpoint = record.endpoint
        counted = endpoint.scoring and status != 401
        items = record.fields.get("items", 0 if counted else None)
        self._metrics.ended(endpoint.path, status, seconds, items)
        attributes = {"http.status_code": status, "request_id": record.request_id, **record.fields}
        self._tracing.ended(record.span, f"{record.method} {endpoint.path}", attributes)

    def _log(self, record: RequestRecord, status: int, seconds: float) -> None:
        endpoint, route = record.endpoint, record.route
        log.log(
            logging.DEBUG if endpoint.access is Access.OPEN else logging.INFO,
            "%s %s: %d in %.1f ms",
            *(record.method, endpoint.path, status, 1000 * seconds),
            extra={
                "facts": {
                    "request_id": record.request_id,
                    "path": endpoint.path,
                    "status": status,
                    "milliseconds": round(1000 * seconds, 2),
                    "release": route.searcher.release[:12] if route else None,
                    "variant": route.variant if route else None,
                    **record.fields,
                }
            },
        )

    def _count_for_rollout(self, record: RequestRecord, status: int) -> None:
        if record.route is None or not record.endpoint.rollouts:
            return
        by_release = (InvalidRequestError.status, NotServedError.status)
        refused = status in by_release and record.question is not None  # By this release, not by us.
        if not (status == 200 or status >= 500 or refused):
            return
        late = status == DeadlineError.status and record.deadline.seconds >= self._lifecycle.settings.deadline_s
        request = AnsweredRequest(
            request_id=record.request_id,
            status=InferenceError.status if record.model_failed else status,
            question=record.question,
            private=record.private,
            late=late,
        )
        self._lifecycle.rollout.answered(record.route, request)


def seconds_for(headers: Headers, settings: Settings) -> float:
    """The seconds that a request has: as many as the client asks for, at most what the settings allow.

    Raises:
        InvalidRequestError: the header holds no whole number of milliseconds above 0.
    """
    sent = headers.get("x-request-timeout-ms")
    if sent is None:
        return settings.deadline_s
    try:
        seconds = int(sent) / 1000
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"x-request-timeout-ms is {sent[:40]!r}; send whole milliseconds") from error
    if seconds <= 0:
        raise InvalidRequestError(f"x-request-timeout-ms is {sent[:40]}; it must be above 0")
    return min(seconds, settings.max_deadline_s)


def check_wish(headers: Headers) -> None:
    """Raises InvalidRequestError for a value of `x-canary` that means nothing."""
    sent = headers.get("x-canary")
    if sent is not None and sent not in WISHES:
        raise InvalidRequestError(f"x-canary is {sent[:40]!r}; send {' or '.join(WISHES)}, or leave it out")


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if sent.isascii() and sent.isprintable() and 0 < len(sent) <= 64 else uuid.uuid4().hex
