"""The candidates of a search: the documents that BM25 and the encoder find, then in the order of all models."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from index.document_store import Document, Rows, Value
from index.highlights import QueryTerms
from index.hits import Hit
from index.vector_rows import FoundPassage
from pipeline import features
from pipeline.command_line import typed
from pipeline.errors import MissingError
from pipeline.features import by_score
from serving.errors import InvalidRequestError, ServingError
from serving.scoring.answers import Ranks, ShardCounts
from serving.scoring.cache import Fetched
from serving.scoring.contents import SearchableContents
from serving.scoring.document_scores import DocumentScore
from serving.scoring.embedder import Vector


@dataclass(frozen=True, slots=True)
class CandidatePool:
    """The first-stage scores of a query's candidates, each (candidates,)."""

    bm25: Sequence[float]
    cosines: Sequence[float] | None
    """None where the encoder is missing."""
    fields: Mapping[str, Sequence[float]]
    """Feature of a single field that the fusion weighs → scores."""

    def before(self) -> Sequence[float]:
        """Scores of the order before the ranker."""
        return self.bm25 if self.cosines is None else features.reciprocal_rank_fusion(self.bm25, self.cosines)

    def table(self, ranker: Sequence[float]) -> list[tuple[float, ...]] | None:
        """The features of each candidate; None where the encoder is missing.

        Args:
            ranker: (candidates,) raw scores.
        """
        return None if self.cosines is None else features.table(self.bm25, self.cosines, ranker, self.fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The documents that the two ways of finding bring for one query."""

    by_words: Sequence[Hit]
    """Documents that BM25 finds, the best first."""
    by_meaning: Sequence[Hit]
    """Documents that the encoder finds, the nearest first; empty where it is missing."""
    rows: Sequence[int]
    """The rows of both lists, each once."""
    pool: CandidatePool
    """Scores in the order of `rows`."""
    queried: Fetched[Vector] | None
    """The query's vector; None where no list needs it, or the encoder is missing."""
    documents: Mapping[int, Document]
    """Row → document, of all rows."""
    terms: Mapping[int, Mapping[str, float]] | None = None
    """Row → matched term → its part in BM25, as shards sent them; None where this release's own index gives them."""
    query_terms: QueryTerms | None = None
    """Terms of the query that the index knows; None where no result says where they stand."""
    nearest: Mapping[int, FoundPassage] | None = None
    """Row → passage nearest to the query, as shards sent them; None where this release's own index gives them."""
    shards: ShardCounts | None = None
    """The shards that the candidates come from; None where the release has the documents itself."""

    def ranks(self) -> Ranks:
        """The ranks of rows in both lists, and in the order before the ranker."""
        before = by_score(self.pool.before())
        return Ranks(
            lexical={hit.row: rank for rank, hit in enumerate(self.by_words, start=1)},
            semantic={hit.row: rank for rank, hit in enumerate(self.by_meaning, start=1)},
            before={self.rows[number]: rank for rank, number in enumerate(before, start=1)},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedCandidates:
    """The ranker's and the fused scores of candidates, and the final order."""

    scored: Fetched[DocumentScore] | None
    """Scores that the ranker gave; None where it was not wanted, or is missing."""
    read: Mapping[int, DocumentScore]
    """Row → score of the ranker; empty where it gave none."""
    features: Mapping[int, Sequence[float]]
    """Row → features, in the order of the fusion's names; empty where there is no fused score."""
    hits: Sequence[Hit]
    """The final order."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The two ways of finding documents of one release: BM25 and the index of vectors."""

    contents: SearchableContents

    def rows_where(self, filters: Mapping[str, Sequence[Value]]) -> Rows:
        """The rows of the documents that pass all filters.

        Raises:
            InvalidRequestError: no document has such a field, or the store is older than filters.
        """
        try:
            return self.contents.documents.rows_where(filters)
        except MissingError as error:
            raise InvalidRequestError(str(error)) from error

    def by_words(self, query: str, depth: int, among: Rows | None) -> list[Hit]:
        """The first `depth` documents by BM25; `among` restricts them to these rows."""
        lexical = self.contents.lexical
        if among is None:
            return lexical.search(query, depth)
        scores = lexical.scores(query, among)
        best = np.lexsort((among, -scores))[:depth]
        return [
            Hit(int(among[number]), lexical.doc_ids[among[number]], float(scores[number]))
            for number in best
            if scores[number] > 0
        ]

    def by_meaning(self, vector: Vector, depth: int, among: Rows | None) -> list[Hit]:
        """The `depth` documents nearest to a query's vector; `among` restricts them to these rows."""
        if among is None:
            return self.contents.semantic.search(vector, depth)
        return self.contents.semantic.search_among(vector, depth, among)

    def pool(self, query: str, rows: Sequence[int], vector: Vector | None, features: Collection[str]) -> CandidatePool:
        """The first-stage scores of these documents.

        Args:
            vector: the query's; None where the encoder is missing.
            features: names of the features of single fields that the final order needs.

        Raises:
            ServingError: a score is not finite, so a file of the release is damaged.
        """
        cosines = None if vector is None else self.contents.semantic.similarities(vector, rows).tolist()
        fields = self.contents.fields.scores(query, vector, rows, features) if features else {}
        pool = CandidatePool(self.contents.lexical.scores(query, rows).tolist(), cosines, fields)
        for name, values in {"bm25": pool.bm25, "cosine": cosines or (), **fields}.items():
            if not math.isfinite(sum(values)):  # Cheaper than a look at each, of which the first stage has many.
                self._refuse(name, rows, values)
        return pool

    def _refuse(self, name: str, rows: Sequence[int], scores: Sequence[float]) -> None:
        """Raises ServingError for a score that is not finite: it would decide the order, and JSON has none."""
        for row, score in zip(rows, scores, strict=True):
            if not math.isfinite(score):
                raise ServingError(
                    f"the score {name} of document {self.contents.lexical.doc_ids[row][:100]!r} is not finite; "
                    f"`{typed('index verify', self.contents.workspace)}` names the damaged file"
                )
