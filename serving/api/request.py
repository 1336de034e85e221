"""One request on its way from an endpoint to the models: its body parsed, its work and its answer made in threads."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from serving.api import json_io
from serving.api.json_io import Json
from serving.api.record import RequestRecord
from serving.api.schemas import RequestBody
from serving.api.thumb_file import ThumbFile
from serving.api.worker_pool import WorkerPool
from serving.errors import DeadlineError
from serving.observability.metrics import Metrics
from serving.observability.tracing import Tracing
from serving.rollout.comparison import ComparedRequest
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.readiness import Readiness
from serving.rollout.traffic import Route
from serving.runtime.admission import RequestOptions
from serving.runtime.items import Priority
from serving.scoring.searcher import Searcher
from serving.settings import Settings

T = TypeVar("T")
M = TypeVar("M", bound=RequestBody)

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])
"""Type of an endpoint's function."""

INLINE_BYTES = 8 * 2**10
"""Bodies up to this size are parsed in the event loop: it takes less than a millisecond, whatever they hold, and they
never wait behind large ones."""

PARSERS = 2
"""Large bodies that are parsed at once. Parsing keeps the interpreter's lock, so more would hold up other threads."""


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of the process that endpoints share."""

    lifecycle: Lifecycle
    work: WorkerPool
    metrics: Metrics
    readiness: Readiness
    tracing: Tracing
    thumbs: ThumbFile | None = None
    """None where the settings name no folder for them."""
    parsing: WorkerPool = field(default_factory=lambda: WorkerPool(PARSERS, "parse"))
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the process is about to end: it still answers, but wants no more requests."""

    @property
    def settings(self) -> Settings:
        return self.lifecycle.settings

    def stop(self) -> None:
        """Stops the worker pools and the readiness checks; work that runs may end."""
        self.parsing.stop()
        self.work.stop()
        self.readiness.stop()


class RequestContext:
    """One request on its way to the models."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.service: Service = request.app.state.service
        self._record: RequestRecord = request.state.record
        no_store = "no-store" in request.headers.get("cache-control", "").lower()
        self.options = RequestOptions(self._record.deadline, remember=not no_store)
        self._headers: dict[str, str] = {}
        self._advice: Callable[[float], str] | None = None
        self._computed_by = ""

    @property
    def searcher(self) -> Searcher:
        """The release that was chosen when the request came; the request keeps it to its end.

        Raises:
            NotReadyError: no release is loaded.
        """
        if self._record.route is None:  # The first release may have come since.
            self._record.route = Route(self.service.lifecycle.current, "live")
        return self._record.route.searcher

    def choose(self, release: str | None) -> None:
        """Sends the request to the release that it names, by the first digits of the fingerprint; None changes nothing.

        Raises:
            NotFoundError: no such release is loaded.
        """
        if release is not None:
            self._record.route = Route(self.service.lifecycle.loaded_as(release), "chosen", wished=True)

    def choose_collection(self, collection: str | None) -> None:
        """Sends the request to a loaded release that holds a shard of this collection; None changes nothing.

        The release that was chosen before stays if it holds such a shard itself.

        Raises:
            NotFoundError: no such release is loaded.
        """
        if collection is not None and self.searcher.collection_id != collection:
            searcher = self.service.lifecycle.loaded_with(collection)
            self._record.route = Route(searcher, "chosen", wished=True)

    async def read(self, model: type[M]) -> M:
        """The request's body, parsed and validated.

        Raises:
            RequestError: the body cannot be read; see `json_io.load` and `json_io.validate`.
            DeadlineError: it was not read before the deadline.
        """
        return await self.read_one_of(lambda _: model)

    async def read_one_of(self, choose: Callable[[Any], type[M]]) -> M:
        """The request's body, parsed, then validated by the model that `choose` names for it; raises as `read` does."""
        body = await self._whole_body()

        def parse() -> M:
            value = json_io.load(body)
            return json_io.validate(value, choose(value), self.service.settings)

        if len(body) <= INLINE_BYTES:
            return parse()
        return await self.service.parsing.run(parse, self._record.deadline, self._request.receive)

    async def _whole_body(self) -> bytearray:
        """The body in one piece, which `Request.body` would keep until the request ends."""
        body = bytearray()
        async for part in self._request.stream():
            body += part
        return body

    def counts(self, items: int) -> None:
        """Notes how many documents or texts the request is about, for the log and the metrics."""
        self._record.fields["items"] = items

    def work_in_bulk(self) -> None:
        """Gives way to other requests, and takes as long as the settings allow; a time that the client named stays."""
        deadline = self._record.deadline
        seconds = self.service.settings.max_deadline_s
        if "x-request-timeout-ms" not in self._request.headers:
            deadline = replace(deadline, until=deadline.until - deadline.seconds + seconds, seconds=seconds)
            self._record.deadline = deadline
        self.options = replace(self.options, deadline=deadline, priority=Priority.BATCH)

    def advise(self, advice: Callable[[float], str]) -> None:
        """Sets the function of seconds whose sentence ends the error of a passed deadline; see `bulk.advice`."""
        self._advice = advice

    async def answer(self, work: Callable[[], Any], *, past_deadline: bool = False) -> Response:
        """The answer with the JSON of what `work` returns; both are made in a worker thread.

        Args:
            past_deadline: `work` returns something useful when the deadline passes, so it is waited for.

        Raises:
            DeadlineError: the deadline passed first; says what to send instead.
            Exception: whatever `work` raises.
        """
        submitted = time.perf_counter()

        def timed() -> bytes:
            began = time.perf_counter()
            try:
                return json_io.encode(work())
            finally:
                self._worked(began - submitted, time.perf_counter() - began)

        deadline = self._record.deadline
        try:
            content = await self.service.work.run(timed, deadline, self._request.receive, past_deadline=past_deadline)
        except DeadlineError as error:
            if self._advice is None:
                raise
            advice = await asyncio.to_thread(self._advice, deadline.seconds)
            raise DeadlineError(f"{error}{advice}") from error
        if self._computed_by:
            self.service.readiness.answered(self.searcher, self._computed_by)
        return Response(content, headers=self._headers, media_type=Json.media_type)

    def small_answer(self, content: Any) -> Json:
        """An answer whose size does not depend on the request."""
        return Json(content, headers=self._headers)

    def spent(self, hits: int, misses: int, *, by: str = "", of: int | None = None) -> None:
        """Notes how many texts came from the cache and how many were computed.

        Args:
            by: the model that computed, ranker or encoder; empty where it may be either.
            of: number of texts of the request, where some are neither.
        """
        self._record.fields.update(hits=hits, misses=misses)
        texts = hits + misses if of is None else of
        how = "hit" if hits == texts else "partial" if hits else "miss"
        self._headers["x-cache"] = f"{how if self.options.remember else 'bypass'}, {hits}/{texts}"
        self._computed_by = by if misses else ""

    def reached(self, documents: int, of: int) -> None:
        """Notes how many documents of a cascade the ranker scored in time."""
        self._record.fields["reranked"] = documents
        self._headers["x-reranked"] = f"{documents}/{of}"

    def model_failed(self) -> None:
        """Notes that a model raised an error, though the request was answered without it."""
        self._record.model_failed = True

    def compare(self, question: ComparedRequest) -> None:
        """Notes the request's question before the work, for releases on trial, unless the client forbids to keep it."""
        if self.options.remember:
            self._record.question = question
        else:
            self._record.private = True

    def _worked(self, waited: float, worked: float) -> None:
        self.service.metrics.worked(waited, worked)
        self.service.tracing.part(self._record.span, "queue", waited)
        self.service.tracing.part(self._record.span, "work", worked)
