"""The scoring core behind every endpoint: texts in, scores or vectors out, through the caches and the scheduler.

Runs in a worker thread, so the event loop never waits for a model. Only texts that no cache knows are tokenised, a few
at a time, while the runners are already at work on those before; what they gave is kept, also of a request that fails.
"""

import logging
import math
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline import text
from pipeline.passages import Passages
from pipeline.text import counted
from serving.errors import BodyTooLargeError, ClientGoneError, DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions, admit
from serving.runtime.deadline import Deadline
from serving.runtime.items import Item, Priority, Throughput
from serving.runtime.job import Job
from serving.runtime.passage_inputs import PassageInput
from serving.runtime.scheduler import Scheduler
from serving.scoring.cache import Cache, Compute, Fetched, Key
from serving.scoring.document_scores import DocumentScore
from serving.scoring.redis_cache import SharedCache, Tier

CHUNK = 16
"""Texts that are tokenised at a time, before the runners get them."""

Role = Literal["query", "document"]
Vector = npt.NDArray[np.float32]
Check = Callable[[], None]

log = logging.getLogger(__name__)


class ScoringEngine(Protocol):
    """The part of an engine that scoring and embedding need."""

    identity: str
    pace: Throughput
    scheduler: Scheduler

    def job(self, deadline: Deadline, priority: Priority) -> Job: ...


class Ranker(ScoringEngine, Protocol):
    """An engine with a ranker."""

    def pairs(self, query: str, documents: Sequence[str], *, remember: bool, check: Check) -> list[Item]: ...

    def cut(
        self, query: str, documents: Sequence[str], passages: Passages, *, remember: bool, check: Check
    ) -> list[list[PassageInput]]: ...


class Encoder(ScoringEngine, Protocol):
    """An engine with an encoder."""

    def texts(self, texts: Sequence[str], role: Role, *, remember: bool, check: Check) -> list[Item]: ...


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of a process; releases share them, as keys name the model."""

    scores: Cache[float]
    vectors: Cache[Vector]
    token_bytes: int
    """Bytes for the token ids of texts that each loaded model keeps."""

    @classmethod
    def of(cls, max_bytes: int, shared: SharedCache | None = None) -> "Caches":
        """Three quarters for scores, which cost most to make again, the rest for vectors; and a sixteenth beside, for
        each model's token ids.

        Args:
            shared: looked at before anything is computed.
        """
        share = max_bytes // 4
        scores = Tier(shared, _packed_score, _unpacked_score) if shared else None
        vectors = Tier(shared, _packed_vector, _unpacked_vector) if shared else None
        return cls(
            Cache(max_bytes - share, lambda _: 24, scores),
            Cache(share, lambda vector: vector.nbytes + 112, vectors),
            max_bytes // 16,
        )


@dataclass(frozen=True, slots=True)
class Reranker:
    """Raw scores of (query, document) pairs."""

    engine: Ranker
    cache: Cache[float]
    passages: Passages | None = None
    """The passages of a document that does not fit beside the query; None cuts the document at its end."""
    max_passages: int = 0
    """Maximum number of passages of all documents of one request; 0 for no bound."""

    def scores(self, query: str, documents: Sequence[str], options: RequestOptions) -> Fetched[float]:
        """One raw score a document, in their order; any finite number, higher is more relevant.

        Raises:
            BusyError: what is not cached cannot be scored before the deadline.
            BodyTooLargeError: the documents have more than `max_passages` passages.
            InferenceError: the model failed on a document; the others are scored and kept all the same.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        if self.passages is None:
            return self._pair_scores(query, documents, options)
        read = self.read(query, documents, options)
        return Fetched([score.value for score in read.values], read.hits, read.misses)

    def read(self, query: str, documents: Sequence[str], options: RequestOptions) -> Fetched[DocumentScore]:
        """Raw scores and best passages of documents; hits and misses count passages. Raises as `scores` does."""
        if self.passages is None:
            fetched = self._pair_scores(query, documents, options)
            return Fetched([DocumentScore(score) for score in fetched.values], fetched.hits, fetched.misses)
        query, documents = text.clean(query), [text.clean(document) for document in documents]
        cut = self._cut(query, documents, options)
        keys, compute = self._parts(query, documents, cut, options, eager=True)
        fetched = self.cache.fetch(keys, compute, options)
        values, scored = iter(fetched.values), []
        for inputs in cut:
            scores = [next(values) for _ in inputs]
            parts = inputs if len(inputs) > 1 else ()
            scored.append(DocumentScore(self.passages.join(scores), scores.index(max(scores)), parts))
        return Fetched(scored, fetched.hits, fetched.misses)

    def scores_in_time(self, query: str, documents: Sequence[str], options: RequestOptions) -> Fetched[float | None]:
        """Raw scores in the order of the documents; None for each that was not scored before the deadline.

        A long queue is no reason to refuse the call: documents are queued in chunks, each once the chunk before it is
        scored. A document of several passages has a score only if every passage was scored.

        Raises:
            BodyTooLargeError: the documents have more passages than a request may have.
            InferenceError: the model raised, or gave a number that is not finite.
            ClientGoneError: the client has closed the connection.
        """
        if self.passages is None:
            keys, compute = self._pairs(query, documents, options, eager=False)
            return self.cache.fetch_some(keys, compute, options)
        join = self.passages.join
        query, documents = text.clean(query), [text.clean(document) for document in documents]
        cut = self._cut(query, documents, options, partial=True)
        keys, compute = self._parts(query, documents, cut, options, eager=False)
        fetched = self.cache.fetch_some(keys, compute, options)
        values = iter(fetched.values)
        scores: list[float | None] = []
        for inputs in cut:
            known = [score for score in (next(values) for _ in inputs) if score is not None]
            scores.append(join(known) if len(known) == len(inputs) else None)
        return Fetched(scores + [None] * (len(documents) - len(cut)), fetched.hits, fetched.misses)

    def _pair_scores(self, query: str, documents: Sequence[str], options: RequestOptions) -> Fetched[float]:
        """The scores of documents that are read to the end of the model's input; raises as `scores` does."""
        keys, compute = self._pairs(query, documents, options, eager=True)
        return self.cache.fetch(keys, compute, options)

    def _pairs(
        self, query: str, documents: Sequence[str], options: RequestOptions, *, eager: bool
    ) -> tuple[list[bytes], Compute[float]]:
        """The keys of documents that are read to the end of the model's input, and what computes their scores."""
        query = text.clean(query)
        documents = [text.clean(document) for document in documents]
        key = Key("score", self.engine.identity, query)

        def inputs(numbers: list[int]) -> list[Item]:
            chosen = [documents[number] for number in numbers]
            return self.engine.pairs(query, chosen, remember=options.remember, check=options.deadline.check)

        def compute(numbers: list[int]) -> Iterator[tuple[int, Any]]:
            return _computed(self.engine, numbers, inputs, "document {}".format, options, eager=eager)

        return [key.of(document) for document in documents], compute

    def _cut(
        self, query: str, documents: Sequence[str], options: RequestOptions, *, partial: bool = False
    ) -> list[list[PassageInput]]:
        """The passages of each document.

        Args:
            query, documents: cleaned.
            partial: leave documents out, from the first that the time did not suffice for.
        """
        assert self.passages is not None
        cut: list[list[PassageInput]] = []
        try:
            for start in range(0, len(documents), CHUNK):
                options.deadline.check()
                chosen = documents[start : start + CHUNK]
                cut += self.engine.cut(
                    query, chosen, self.passages, remember=options.remember, check=options.deadline.check
                )
                check_passages(len(cut), sum(map(len, cut)), self.max_passages)
        except DeadlineError:
            if not partial:
                raise
        return cut

    def _parts(
        self,
        query: str,
        documents: Sequence[str],
        cut: Sequence[Sequence[PassageInput]],
        options: RequestOptions,
        *,
        eager: bool,
    ) -> tuple[list[bytes], Compute[float]]:
        """The keys of all passages, and what computes their scores.

        A document that is not cut has the key of its text, so its score is also that of a request without passages. A
        passage has the key of its ids: a document that changes at its end keeps the scores of what stands before.

        Args:
            query, documents: cleaned.
        """
        key = Key("score", self.engine.identity, query)
        parts = [(number, part) for number, inputs in enumerate(cut) for part in inputs]
        keys = [
            key.of(documents[number]) if part.uncut else key.of("passage", array("I", part.ids).tobytes())
            for number, part in parts
        ]

        def inputs(numbers: list[int]) -> list[Item]:
            return [parts[number][1].item() for number in numbers]

        def label(number: int) -> str:
            return f"document {parts[number][0]}"

        def compute(numbers: list[int]) -> Iterator[tuple[int, Any]]:
            return _computed(self.engine, numbers, inputs, label, options, eager=eager)

        return keys, compute


@dataclass(frozen=True, slots=True)
class Embedder:
    """Unit vectors of texts."""

    engine: Encoder
    cache: Cache[Vector]

    def vectors(self, texts: Sequence[str], role: Role, options: RequestOptions) -> Fetched[Vector]:
        """One vector (dimensions,) a text, in their order; shared with the cache, so not writable.

        Raises:
            BusyError: what is not cached cannot be embedded before the deadline.
            InferenceError: the model failed on a text.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        texts = [text.clean(item) for item in texts]
        key = Key("vector", self.engine.identity, role)

        def inputs(numbers: list[int]) -> list[Item]:
            chosen = [texts[number] for number in numbers]
            return self.engine.texts(chosen, role, remember=options.remember, check=options.deadline.check)

        def compute(numbers: list[int]) -> Iterator[tuple[int, Any]]:
            for number, outcome in _computed(self.engine, numbers, inputs, (role + " {}").format, options, eager=True):
                if not isinstance(outcome, Exception):
                    outcome.flags.writeable = False
                yield number, outcome

        return self.cache.fetch([key.of(item) for item in texts], compute, options)


def check_passages(documents: int, passages: int, most: int) -> None:
    """Checks the number of passages of the first documents of a request; 0 is no bound.

    Raises:
        BodyTooLargeError: they have more.
    """
    if most and passages > most:
        raise BodyTooLargeError(
            f"the first {counted(documents, 'document', 'have')} {passages} passages; at most {most} are taken in one "
            "request (RELEVANCE_MAX_PASSAGES): send fewer documents, or a smaller max_chunks_per_doc"
        )


def relevance(score: float) -> float:
    """A raw score as clients see it, in [0, 1]: its sigmoid."""
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    grown = math.exp(score)
    return grown / (1.0 + grown)


def _computed(
    engine: ScoringEngine,
    numbers: list[int],
    inputs: Callable[[list[int]], list[Item]],
    label: Callable[[int], str],
    options: RequestOptions,
    *,
    eager: bool,
) -> Iterator[tuple[int, Any]]:
    """Yields the index and the output of each input, or its InferenceError, as the runners end.

    Args:
        label: index → name of the text, for messages.
        eager: have all wait in the queue at once, if they can be done in time; else a chunk after the other, no
            further than the time goes.

    Raises:
        BusyError: eager, and they cannot.
    """
    failed = 0
    for number, outcome in _outcomes(engine, numbers, inputs, options, eager=eager):
        if not isinstance(outcome, Exception):
            yield number, outcome
            continue
        failed += 1
        words = f"{label(number)}: the model gave no usable answer for this text"
        if failed == 1:  # The others have the same reason more often than not.
            log.error("%s %s", engine.identity[:8], words, exc_info=outcome)
        yield number, InferenceError(words)
    if failed > 1:
        log.error("%s: %s of this request failed", engine.identity[:8], counted(failed, "text"))


def _outcomes(
    engine: ScoringEngine,
    numbers: list[int],
    inputs: Callable[[list[int]], list[Item]],
    options: RequestOptions,
    *,
    eager: bool,
) -> Iterator[tuple[int, Any]]:
    """Yields the index and the output of each input, or the exception that it met; see `_computed`."""
    if eager:
        admit(engine.scheduler, engine.pace, 0, options)  # Before anything is tokenised.
    with engine.job(options.deadline, options.priority) as job:
        for start in range(0, len(numbers), CHUNK):
            try:
                options.deadline.check()
                items = inputs(numbers[start : start + CHUNK])
            except (DeadlineError, ClientGoneError):
                # Runners were at work on the chunks before this one; what they gave is kept.
                yield from ((numbers[number], outcome) for number, outcome in job.ended())
                raise
            if eager and start == 0:
                tokens = sum(len(item.ids) for item in items) * len(numbers) / len(items)
                admit(engine.scheduler, engine.pace, tokens, options)
            job.add(items)
            if not eager or start + CHUNK >= len(numbers):
                yield from ((numbers[number], outcome) for number, outcome in job)


def _packed_score(score: float) -> bytes:
    return struct.pack("<d", score)


def _unpacked_score(held: bytes) -> float | None:
    if len(held) != 8:
        return None
    (score,) = struct.unpack("<d", held)
    return score if math.isfinite(score) else None


def _packed_vector(vector: Vector) -> bytes:
    return vector.astype("<f4").tobytes()


def _unpacked_vector(held: bytes) -> Vector | None:
    if not held or len(held) % 4:
        return None
    vector = np.frombuffer(held, "<f4").astype(np.float32)
    vector.flags.writeable = False
    return vector if np.isfinite(vector).all() else None
