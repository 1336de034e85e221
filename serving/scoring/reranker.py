"""Scores of (query, document) pairs, through the cache and the ranker's engine.

Only texts that no cache knows are tokenised.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import text
from pipeline.passages import Passages
from pipeline.text import counted
from serving.errors import BodyTooLargeError, DeadlineError
from serving.runtime.admission import RequestOptions
from serving.runtime.items import Item
from serving.runtime.passage_inputs import PassageInput
from serving.scoring.cache import Cache, Compute, Fetched, Key
from serving.scoring.document_scores import DocumentScore
from serving.scoring.scoring_engine import CHUNK, Ranker, computed


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
            return computed(self.engine, numbers, inputs, "document {}".format, options, eager=eager)

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
            return computed(self.engine, numbers, inputs, label, options, eager=eager)

        return keys, compute


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
