"""One request on its way from an endpoint to the models of the release that was live when it came."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from serving.deadline import Deadline
from serving.errors import InvalidRequestError
from serving.lifecycle import Lifecycle
from serving.metrics import Metrics
from serving.readiness import Readiness
from serving.searcher import Searcher
from serving.settings import Settings
from serving.wire import Json
from serving.work import Work

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """What the endpoints share."""

    lifecycle: Lifecycle
    work: Work
    metrics: Metrics
    readiness: Readiness

    @property
    def settings(self) -> Settings:
        return self.lifecycle.settings


class Call:
    """One request on its way to the models."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.service: Service = request.app.state.service
        self.deadline: Deadline = request.state.deadline
        self._facts: dict[str, Any] = request.state.facts
        self._headers: dict[str, str] = {}

    @property
    def searcher(self) -> Searcher:
        """The release that was live when the request came; it stays the request's, whatever happens meanwhile.

        Raises:
            NotReadyError: there was none.
        """
        searcher: Searcher | None = self._request.state.searcher
        return searcher or self.service.lifecycle.current

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

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns, from a worker thread."""
        return await self.service.work.run(call, self.deadline, self._request.receive)

    def spent(self, hits: int, misses: int) -> None:
        """Notes what came from the cache and what was computed."""
        self._facts.update(hits=hits, misses=misses)
        self._headers["x-cache"] = f"{hits}/{hits + misses}"
        if misses:
            self.service.readiness.answered(self.searcher)

    def answer(self, content: Any) -> Json:
        return Json(content, headers=self._headers)
