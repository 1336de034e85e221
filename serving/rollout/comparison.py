"""Comparison of two releases on one request: overlap of first results, change of scores, nDCG where judged."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from index.document_store import Value
from pipeline import schema, text
from pipeline.errors import MissingError
from pipeline.features import by_score
from serving.runtime.admission import RequestOptions
from serving.scoring.document_scores import DocumentLimits
from serving.scoring.reranker import relevance
from serving.scoring.searcher import Searcher, SearchResult

DEPTH = 10
"""First results that are compared, and the cut-off of nDCG."""

Grades = Mapping[str, Mapping[str, int]]
"""Normalised query → document → grade."""


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """The answer of one release."""

    order: Sequence[Hashable]
    """Documents, best first."""
    relevances: Mapping[Hashable, float]
    """The ranker's score of each document, in [0, 1]."""


class ComparedRequest(Protocol):
    """A request that can be put to a release again."""

    @property
    def query(self) -> str: ...

    @property
    def chars(self) -> int:
        """Number of characters of the request, by which kept requests are bounded."""

    @property
    def judged(self) -> bool:
        """Whether grades for its query apply to what it returns."""

    @property
    def depth(self) -> int:
        """Number of first results to compare; 0 where any order is the same."""

    def ask(self, searcher: Searcher, options: RequestOptions) -> ComparisonResult: ...


@dataclass(frozen=True, slots=True)
class Rerank:
    """Texts to be ordered."""

    query: str
    texts: Sequence[str]
    first: Sequence[float] | None = None
    """First-stage scores; None where there are none."""
    limits: DocumentLimits = field(default_factory=DocumentLimits)
    fused: bool | None = None
    """See `pipeline.features.in_fused_order`."""

    judged = False

    @property
    def chars(self) -> int:
        return len(self.query) + sum(map(len, self.texts))

    @property
    def depth(self) -> int:
        """Number of first results to compare: at most half of the texts; the first ten of ten are always the same."""
        return min(DEPTH, len(self.texts) // 2)

    def ask(self, searcher: Searcher, options: RequestOptions) -> ComparisonResult:
        reranker = searcher.reranker_within(self.limits)
        scores = searcher.rerank(self.query, self.texts, self.first, self.fused, options=options, reranker=reranker)
        return self.outcome(scores.values, scores.ranker)

    def outcome(self, scores: Sequence[float], ranker: Sequence[float] | None = None) -> ComparisonResult:
        """The answer that these scores give.

        Args:
            ranker: raw scores of the ranker, where the order is that of other scores.
        """
        relevances: dict[Hashable, float] = {
            index: relevance(score) for index, score in enumerate(scores if ranker is None else ranker)
        }
        return ComparisonResult(by_score(scores), relevances)


@dataclass(frozen=True, slots=True)
class Search:
    """A search of the release's documents."""

    query: str
    top_n: int
    retrieve: int
    filters: Mapping[str, Sequence[Value]]

    @property
    def chars(self) -> int:
        return len(self.query) + sum(len(str(value)) for values in self.filters.values() for value in values)

    @property
    def judged(self) -> bool:
        return not self.filters

    @property
    def depth(self) -> int:
        return min(DEPTH, self.top_n)

    def ask(self, searcher: Searcher, options: RequestOptions) -> ComparisonResult:
        return self.outcome(
            searcher.search(
                self.query,
                top_n=self.top_n,
                retrieve=self.retrieve,
                filters=self.filters,
                options=options,
                degrade=False,
            )
        )

    def outcome(self, result: SearchResult) -> ComparisonResult:
        return ComparisonResult(
            [answer.doc_id for answer in result.reranked],
            {answer.doc_id: answer.relevance or 0.0 for answer in result.reranked},
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcomes of two releases for one question."""

    overlap: float | None
    """Share of the first results that both have; None where any order would do."""
    changes: Sequence[float]
    """Absolute change of relevance of each document that both have, in [0, 1]."""
    ndcg: tuple[float, float] | None
    """nDCG of the release on trial and of the live one; None where the query is not judged."""


def compare(question: ComparedRequest, trial: ComparisonResult, live: ComparisonResult, grades: Grades) -> Comparison:
    """Compares the answers of the release on trial and of the live one."""
    depth = question.depth
    first, second = set(trial.order[:depth]), set(live.order[:depth])
    longer = max(len(first), len(second))
    both = trial.relevances.keys() & live.relevances.keys()
    known = grades_of(question, grades)
    return Comparison(
        overlap=len(first & second) / longer if longer else None,
        changes=[abs(trial.relevances[item] - live.relevances[item]) for item in both],
        ndcg=(ndcg(trial.order[:depth], known, depth), ndcg(live.order[:depth], known, depth)) if known else None,
    )


def grades_of(question: ComparedRequest, grades: Grades) -> Mapping[str, int] | None:
    """The grades of documents for this question; None where it is not judged."""
    return grades.get(text.normalise(question.query)) if grades and question.judged else None


def ndcg(order: Sequence[Hashable], grades: Mapping[str, int], cutoff: int) -> float:
    """nDCG with linear gain of documents, best first; 0 where no document has a grade above 0.

    The same measure as the report's `ndcg@10`; the service may not import that code, which belongs to the training.
    """
    gain = sum(grades.get(str(item), 0) / math.log2(rank + 1) for rank, item in enumerate(order[:cutoff], start=1))
    best = sorted(grades.values(), reverse=True)[:cutoff]
    ideal = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(best, start=1))
    return gain / ideal if ideal else 0.0


def read_grades(folder: Path) -> Grades:
    """The judged queries of a folder with `queries.parquet` and `judgments.parquet`.

    Queries whose split is train are left out: the models have seen them. Those without any grade above 0 too.

    Raises:
        MissingError: a file is not there, or there is no such query.
        SchemaError: a file is not what `pipeline.schema` says.
    """
    queries = schema.read(folder / "queries.parquet", "queries").select(["query_id", "text"]).to_pylist()
    texts = {row["query_id"]: text.normalise(row["text"]) for row in queries}
    judgments = schema.read(folder / "judgments.parquet", "judgments")
    columns = ["query_id", "doc_id", "grade", *(["split"] if "split" in judgments.column_names else [])]
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for row in judgments.select(columns).to_pylist():
        if row.get("split") != "train" and row["query_id"] in texts:
            graded = grades[texts[row["query_id"]]]
            graded[row["doc_id"]] = max(row["grade"], graded.get(row["doc_id"], 0))
    useful = {query: graded for query, graded in grades.items() if any(graded.values())}
    if not useful:
        raise MissingError(
            f"{folder}: no judged query outside the train split; name a folder with valid or test queries"
        )
    return useful
