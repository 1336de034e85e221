"""One request on its way from an endpoint to the models of the release that was live when it came."""

import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from serving.api.json_io import Json
from serving.api.worker_pool import WorkerPool
from serving.errors import InvalidRequestError
from serving.observability.metrics import Metrics
from serving.observability.tracing import Tracing
from serving.rollout.comparison import ComparedRequest, ComparisonResult
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.readiness import Readiness
from serving.rollout.traffic import Route, RoutedRequest
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring.searcher import Searcher
from serving.settings import Settings

T = TypeVar("T")

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])
"""Type of an endpoint's function."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the endpoints share."""

    lifecycle: Lifecycle
    work: WorkerPool
    metrics: Metrics
    readiness: Readiness
    tracing: Tracing
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the process is about to end: it still answers, but wants no more."""

    @property
    def settings(self) -> Settings:
        return self.lifecycle.settings


class RequestContext:
    """One request on its way to the models."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.service: Service = request.app.state.service
        self.deadline: Deadline = request.state.deadline
        no_store = "no-store" in request.headers.get("cache-control", "").lower()
        self.terms = RequestOptions(self.deadline, remember=not no_store)
        self._facts: dict[str, Any] = request.state.facts
        self._headers: dict[str, str] = {}

    @property
    def searcher(self) -> Searcher:
        """The release that was chosen when the request came; it stays the request's, whatever happens meanwhile.

        Raises:
            NotReadyError: there was none.
        """
        choice: Route | None = self._request.state.choice
        if choice is None:  # The first release may have come since.
            choice = self._request.state.choice = Route(self.service.lifecycle.current, "live")
        return choice.searcher

    def counts(self, items: int) -> None:
        """Notes how many documents or texts the request is about, for the log and the metrics."""
        self._facts["items"] = items

    def takes(self, items: int, name: str) -> None:
        """Notes how many documents or texts the client sent.

        Raises:
            InvalidRequestError: more than the limit.
        """
        self.counts(items)
        limit = self.service.settings.max_documents
        if items > limit:
            raise InvalidRequestError(
                f"{items} {name}; at most {limit} are taken in one request (RELEVANCE_MAX_DOCUMENTS)"
            )

    async def run(self, call: Callable[[], T], *, in_time: bool = False) -> T:
        """What `call` returns, from a worker thread; with `in_time` it is waited for past the deadline."""
        asked = time.perf_counter()

        def timed() -> T:
            began = time.perf_counter()
            try:
                return call()
            finally:
                waited, worked = began - asked, time.perf_counter() - began
                self.service.metrics.worked(waited, worked)
                self._request.state.worked_s = worked
                self.service.tracing.part(self._request.state.span, "queue", waited)
                self.service.tracing.part(self._request.state.span, "work", worked)

        return await self.service.work.run(timed, self.deadline, self._request.receive, in_time=in_time)

    def spent(self, hits: int, misses: int, *, by: str = "", of: int | None = None) -> None:
        """Notes what came from the cache and what was computed.

        Args:
            by: the model that computed, ranker or encoder; empty where it may be either.
            of: so many texts, where that is not all.
        """
        self._facts.update(hits=hits, misses=misses)
        texts = hits + misses if of is None else of
        how = "hit" if hits == texts else "partial" if hits else "miss"
        self._headers["x-cache"] = f"{how if self.terms.remember else 'bypass'}, {hits}/{texts}"
        if misses and by:
            self.service.readiness.answered(self.searcher, by)

    def reached(self, documents: int, of: int) -> None:
        """Notes how many documents of a cascade the ranker scored in time."""
        self._facts["reranked"] = documents
        self._headers["x-reranked"] = f"{documents}/{of}"

    def said(self, question: ComparedRequest, outcome: Callable[[], ComparisonResult]) -> None:
        """Notes what was asked and answered, for a release on trial; not where the client forbids to keep it."""
        if self.terms.remember:
            self._request.state.asked = RoutedRequest(question=question, outcome=outcome)

    def answer(self, content: Any) -> Json:
        return Json(content, headers=self._headers)
