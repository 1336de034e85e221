"""Reranking as far as the time goes: best first by a first stage's scores, the rest left in the first stage's order.

The first stage is whatever found the documents, whose scores the client sends, or this release's encoder. A document
that the ranker reached stands before those that it did not, so a client that shows the first page loses little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.features import by_score
from serving.errors import BusyError, DeadlineError
from serving.runtime.admission import RequestOptions
from serving.scoring.embedder import Embedder
from serving.scoring.reranker import Reranker

FIRST_SHARE = 0.5
"""Largest share of the time that the encoder's first stage may take."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """All documents in their final order, some with a score."""

    order: list[int]
    """Indices of the documents: those with a score by falling score, then the others in first-stage order."""
    scores: list[float | None]
    """The ranker's raw score of each document, in the order in which they came; None where the time did not suffice."""
    hits: int
    misses: int

    @property
    def reached(self) -> int:
        """Number of documents that have a score."""
        return sum(score is not None for score in self.scores)


def rerank(
    reranker: Reranker,
    embedder: Embedder | None,
    query: str,
    documents: Sequence[str],
    first: Sequence[float] | None,
    options: RequestOptions,
) -> Cascade:
    """Documents in the ranker's order as far as the deadline allows; never an error because of time.

    Args:
        embedder: None for a release without an encoder.
        first: first-stage scores of the documents, higher is better; the encoder's cosines when None, or the order as
            given where the time does not even suffice for those, or where there is no encoder.

    Raises:
        BodyTooLargeError: the documents have more passages than a request may have.
        InferenceError: the model raised, or gave a number that is not finite.
        ClientGoneError: the client has closed the connection.
    """
    options = replace(options, deadline=options.deadline.with_reserve())
    if first is None:
        first = _cosines(embedder, query, documents, options) if embedder else [0.0] * len(documents)
    before = by_score(first)
    reranked = reranker.scores_in_time(query, [documents[number] for number in before], options)
    scores: list[float | None] = [None] * len(documents)
    for index, score in zip(before, reranked.values, strict=True):
        scores[index] = score
    reached = [number for number in range(len(documents)) if scores[number] is not None]
    order = sorted(reached, key=lambda number: -(scores[number] or 0.0))
    order += [index for index in before if scores[index] is None]
    return Cascade(order, scores, reranked.hits, reranked.misses)


def _cosines(embedder: Embedder, query: str, documents: Sequence[str], options: RequestOptions) -> list[float]:
    """The encoder's cosine of the query with each document; all 0, which keeps their order, without the time for it."""
    options = replace(options, deadline=options.deadline.earlier(FIRST_SHARE * options.deadline.remaining))
    try:
        (vector,) = embedder.vectors([query], "query", options).values
        return [float(vector @ other) for other in embedder.vectors(documents, "document", options).values]
    except (DeadlineError, BusyError):
        return [0.0] * len(documents)
