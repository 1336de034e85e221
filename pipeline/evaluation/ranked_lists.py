"""Ranked lists of many queries, one after another in flat arrays, and the formulas of the measures over them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Gain = Literal["linear", "exponential"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def _totals(query: Ints, values: ArrayLike, queries: int) -> Floats:
    sums = np.bincount(query, weights=np.asarray(values, dtype=np.float64), minlength=queries)
    return sums.astype(np.float64)


@dataclass(frozen=True, slots=True)
class RankedLists:
    """Ranked lists of many queries, one after another in flat arrays, best document first within each query.

    The ideal lists hold the grades of all judgments of each query, best first.
    """

    queries: int
    query: Ints
    """(documents,) number of each document's query from 0, ascending."""
    grade: Floats
    """(documents,) 0 where unjudged."""
    judged: Bools
    score: NDArray[np.float32]
    ideal_query: Ints
    """(judgments,) number of each judgment's query from 0, ascending."""
    ideal_grade: Floats
    """(judgments,) descending within a query."""

    @property
    def rank(self) -> Ints:
        return _ranks(self.query, self.queries)

    def total(self, values: ArrayLike) -> Floats:
        """Sums a value of each document, in the order of `grade`, over each query's list, (queries,)."""
        return _totals(self.query, values, self.queries)

    def ideal_total(self, values: ArrayLike) -> Floats:
        """Sums a value of each judgment, in the order of `ideal_grade`, over each query's ideal list, (queries,)."""
        return _totals(self.ideal_query, values, self.queries)


def _ranks(query: Ints, queries: int) -> Ints:
    """Ranks from 1 within runs of equal, ascending query numbers."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(query, minlength=queries))])
    return np.asarray(np.arange(len(query)) - starts[query] + 1, dtype=np.int64)


def _share(part: Floats, total: Floats) -> Floats:
    """part / total, 0 where the total is 0."""
    return np.divide(part, total, out=np.zeros_like(part), where=total > 0)


def ndcg(lists: RankedLists, cutoff: int | None, gain: Gain) -> Floats:
    """nDCG of each query, (queries,); 0 where no grade is above 0."""

    def gains(grade: Floats, rank: Ints) -> Floats:
        worth = grade if gain == "linear" else np.exp2(grade) - 1.0
        kept = worth / np.log2(rank + 1.0)
        return kept if cutoff is None else np.where(rank <= cutoff, kept, 0.0)

    ideal_rank = _ranks(lists.ideal_query, lists.queries)
    return _share(lists.total(gains(lists.grade, lists.rank)), lists.ideal_total(gains(lists.ideal_grade, ideal_rank)))


def _pairwise(lists: RankedLists) -> Floats:
    """Share of the pairs of different grade in the right order, (queries,); ties count half, an empty list scores 0.

    A document that is not returned counts as below all that are, and two such documents as a tie. NaN without pairs.
    """
    fresh = np.ones(len(lists.query), dtype=bool)
    fresh[1:] = (lists.query[1:] != lists.query[:-1]) | (lists.score[1:] != lists.score[:-1])
    tie = np.cumsum(fresh) - 1  # (documents,) which group of equal scores
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(lists.query)) - 1
    ends = np.cumsum(np.bincount(lists.query, minlength=lists.queries))  # (queries,) one past each list
    won, pairs = np.zeros(lists.queries), np.zeros(lists.queries)
    for level in np.unique(lists.ideal_grade):
        here, above = lists.judged & (lists.grade == level), lists.judged & (lists.grade > level)
        seen = np.concatenate([[0], np.cumsum(here)])  # documents of this grade before each place
        below = seen[ends[lists.query]] - seen[last[tie] + 1]
        level_with = seen[last[tie] + 1] - seen[first[tie]]
        all_here = lists.ideal_total(lists.ideal_grade == level)
        all_above = lists.ideal_total(lists.ideal_grade > level)
        hidden_here, hidden_above = all_here - lists.total(here), all_above - lists.total(above)
        won += lists.total(above * (below + 0.5 * level_with))
        won += lists.total(above) * hidden_here + 0.5 * hidden_above * hidden_here
        pairs += all_above * all_here
    won[lists.total(np.ones(len(lists.query))) == 0] = 0.0
    share: Floats = np.divide(won, pairs, out=np.full(lists.queries, np.nan), where=pairs > 0)
    return share


def _reciprocal_rank(lists: RankedLists, relevant: Bools) -> Floats:
    best = np.zeros(lists.queries)
    np.maximum.at(best, lists.query, relevant / lists.rank)
    return best


def _average_precision(lists: RankedLists, relevant: Bools, all_relevant: Floats) -> Floats:
    ends = np.cumsum(lists.total(relevant))  # (queries,) relevant documents up to the end of each list
    so_far = np.cumsum(relevant) - np.concatenate([[0.0], ends])[lists.query]
    return _share(lists.total(relevant * so_far / lists.rank), all_relevant)


def ordered_lists(
    query: Ints,
    score: NDArray[np.float32],
    tie: ArrayLike,
    grade: Floats,
    judged: Bools,
    ideal: tuple[Ints, Floats],
    n: int,
) -> RankedLists:
    """Lists sorted by query, descending score and descending `tie`; ideal lists by query and descending grade."""
    order = np.lexsort((-np.asarray(tie), -score, query))
    ideal_query, ideal_grade = ideal
    best = np.lexsort((-ideal_grade, ideal_query))
    return RankedLists(n, query[order], grade[order], judged[order], score[order], ideal_query[best], ideal_grade[best])


def measure_values(lists: RankedLists, name: str, cutoff: int | None, relevant_from: float) -> Floats:
    """The value of one measure for each query, (queries,).

    Args:
        name: one of `pipeline.evaluation.metrics.NAMES`.
        cutoff: the last rank that counts; None for the whole list.
        relevant_from: lowest grade that counts as relevant in the binary measures: mrr, map, recall and precision.
    """
    kept = lists.rank <= (cutoff or len(lists.query))
    relevant = (lists.grade >= relevant_from) & lists.judged & kept
    all_relevant = lists.ideal_total(lists.ideal_grade >= relevant_from)
    returned = lists.total(kept)
    values: dict[str, Callable[[], Floats]] = {
        "ndcg": lambda: ndcg(lists, cutoff, "linear"),
        "ndcg_exp": lambda: ndcg(lists, cutoff, "exponential"),
        "mrr": lambda: _reciprocal_rank(lists, relevant),
        "map": lambda: _average_precision(lists, relevant, all_relevant),
        "recall": lambda: _share(lists.total(relevant), all_relevant),
        "precision": lambda: lists.total(relevant) / cutoff if cutoff else _share(lists.total(relevant), returned),
        "pairwise": lambda: _pairwise(lists),
        "judged": lambda: _share(lists.total(lists.judged & kept), returned),
    }
    return values[name]()
