"""Measures of ranked lists, for one query or for many at once, equal to trec_eval's where it has them.

A measure is named as in `ndcg@10`; without a cut-off it looks at the whole list.

    ndcg        normalised discounted cumulative gain, the gain being the grade (Järvelin and Kekäläinen, 2002)
    ndcg_exp    the same with gain 2^grade − 1 (Burges et al., 2005)
    mrr         1 / rank of the first relevant document, 0 where there is none
    map         mean over the relevant documents of the precision at each; those not returned count 0
    recall      share of the relevant documents that are returned
    precision   relevant documents in the first k, divided by k
    pairwise    share of the pairs of judged documents of different grade that stand in the right order
    judged      share of the returned documents that have a judgment

Rules for all of them: a judged query that the run misses scores 0 and is counted. A document without a
judgment has grade 0, but is in no pair. Ideal lists are made of all judgments of the query. Scores are compared
as 32-bit floats, and of equal scores the greater document id (compared as bytes) stands first, as in trec_eval.
A query without a relevant document scores 0 and is counted, as in trec_eval; `PerQuery.unanswerable` says which.
Pairwise accuracy, which trec_eval has not, is NaN for a query whose judgments are all of one grade.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ConfigError, SchemaError
from pipeline.evaluation import ranked_lists
from pipeline.evaluation.ranked_lists import Bools, Floats, Gain, Ints, RankedLists, measure_values, ordered_lists
from pipeline.schema import row_name
from pipeline.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

RANGE = (0.0, 1.0)
"""The least and the greatest value of every measure."""

NAMES = ("ndcg", "ndcg_exp", "mrr", "map", "recall", "precision", "pairwise", "judged")
"""Names of measures without their cutoff."""

_MEASURE = re.compile(rf"({'|'.join(NAMES)})(?:@([1-9][0-9]*))?")


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure and its cut-off; None looks at the whole list."""

    name: str
    cutoff: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Measure":
        """The measure that a name such as `ndcg@10` means.

        Raises:
            ConfigError: an unknown measure, or pairwise accuracy with a cut-off.
        """
        match = _MEASURE.fullmatch(text)
        if not match or (match[1] == "pairwise" and match[2]):
            raise ConfigError(f"'{text}' is no measure; take one of {', '.join(NAMES)}, as in ndcg@10")
        return cls(match[1], int(match[2]) if match[2] else None)


@dataclass(frozen=True, slots=True)
class PerQuery:
    """The value of each measure for each judged query, and which queries were missed or have no answer."""

    queries: tuple[str, ...]
    """Ids of the judged queries, ascending."""
    values: Mapping[str, Floats]
    """Name of a measure → (queries,)."""
    missed: Bools
    """(queries,) true where the run has no document for the query."""
    unanswerable: Bools
    """(queries,) true where no judgment reaches `relevant_from`."""
    unjudged_queries: int = 0
    """Number of queries of the run that have no judgment; they are left out."""

    def mean(self, measure: str) -> float:
        """Mean over the queries for which the measure is defined; NaN when there is none."""
        values = self.values[measure]
        defined = values[~np.isnan(values)]
        return float(defined.mean()) if len(defined) else float("nan")


def _checked_scores(scores: ArrayLike, where: str) -> NDArray[np.float32]:
    values = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        row = int(np.flatnonzero(~np.isfinite(single))[0])
        raise SchemaError(
            f"{where}, {row_name(row)}: score {values[row]} is not a finite 32-bit number; look at the model that made "
            "it"
        )
    return single


def _checked_grades(grades: ArrayLike, where: str) -> Floats:
    values = np.asarray(grades, dtype=np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise SchemaError(
            f"{where}, {row_name(row)}: grade {values[row]} is not a number from 0 up; map it, or drop the row"
        )
    return values


def _qrels_grades(judgments: "pa.Table") -> Floats:
    """Grades of a table of judgments; a negative grade counts as 0, as in trec_eval."""
    grades = np.asarray(_numbers(judgments, "grade"), dtype=np.float64)
    return _checked_grades(np.where(grades < 0, 0.0, grades), "judgments")


def _values(lists: RankedLists, measure: Measure, relevant_from: float) -> Floats:
    return measure_values(lists, measure.name, measure.cutoff, relevant_from)


def by_query(
    queries: ArrayLike,
    grades: ArrayLike,
    scores: ArrayLike,
    measures: Sequence[str] = ("ndcg@10",),
    *,
    ids: ArrayLike | None = None,
    relevant_from: float = 1,
) -> dict[str, Floats]:
    """Each measure for each query of lists whose documents are all judged, in ascending order of the query ids.

    It is quick, for use during training, where scores and grades lie side by side. Ideal lists are made of the
    documents given.

    Args:
        queries: (documents,) query of each; ids or numbers, in any order.
        grades: (documents,) from 0 up.
        scores: (documents,) higher is better.
        ids: (documents,) document ids, or numbers in their order; they break ties as in trec_eval. Without them the
            lower grade stands first, so that a model which gives one score to all gains nothing from the order of
            the rows.
        relevant_from: lowest grade that counts as relevant in the binary measures: mrr, map, recall and precision.

    Raises:
        SchemaError: arrays of different lengths, a score that is not finite, a negative grade.
    """
    parsed = {name: Measure.parse(name) for name in measures}
    grade, score = _checked_grades(grades, "judgments"), _checked_scores(scores, "run")
    names, query = np.unique(np.asarray(queries), return_inverse=True)
    docs = None if ids is None else np.asarray(ids)
    if not len(grade) == len(score) == len(query) == (len(grade) if docs is None else len(docs)):
        raise SchemaError(
            f"lists of different lengths: {counted(len(query), 'query')}, {counted(len(grade), 'grade')}, {len(score)} "
            "scores" + ("" if docs is None else f", {len(docs)} ids")
        )
    tie = -grade if docs is None else np.unique(docs, return_inverse=True)[1]
    lists = ordered_lists(query, score, tie, grade, np.ones(len(query), dtype=bool), (query, grade), len(names))
    return {name: _values(lists, measure, relevant_from) for name, measure in parsed.items()}


def ndcg(
    grades: ArrayLike,
    scores: ArrayLike,
    k: int | None = None,
    gain: Gain = "linear",
    ideal_grades: ArrayLike | None = None,
    ids: Sequence[str] | None = None,
) -> float:
    """nDCG@k of one query's list; 0 when no grade is above 0.

    Args:
        grades: (documents,) from 0 up; 0 for a document without a judgment.
        scores: (documents,) higher is better.
        k: cut-off of the list and of the ideal list; None for none.
        ideal_grades: grades of all judged documents of the query, where the list lacks some; else `grades`.
        ids: document ids, which break ties; without them the lower grade stands first.

    Raises:
        SchemaError: arrays of different lengths, a score that is not finite, a negative grade.
    """
    grade, score = _checked_grades(grades, "judgments"), _checked_scores(scores, "run")
    ideal = grade if ideal_grades is None else _checked_grades(ideal_grades, "ideal grades")
    if not len(grade) == len(score) == (len(grade) if ids is None else len(ids)):
        raise SchemaError(
            f"lists of different lengths: {counted(len(grade), 'grade')}, {len(score)} scores"
            + ("" if ids is None else f", {len(ids)} ids")
        )
    tie = -grade if ids is None else np.unique(np.asarray(ids), return_inverse=True)[1]
    query, judged = np.zeros(len(grade), dtype=np.int64), np.ones(len(grade), dtype=bool)
    lists = ordered_lists(query, score, tie, grade, judged, (np.zeros(len(ideal), dtype=np.int64), ideal), 1)
    return float(ranked_lists.ndcg(lists, k, gain)[0])


def evaluate(run: "pa.Table", judgments: "pa.Table", measures: Sequence[str], *, relevant_from: float = 1) -> PerQuery:
    """Each measure for each judged query.

    Args:
        run: columns query_id, doc_id, score; rows in any order, ranks are made from the scores.
        judgments: columns query_id, doc_id, grade; every query in it is counted, and a negative grade counts as 0.
        relevant_from: lowest grade that counts as relevant in the binary measures: mrr, map, recall and precision.

    Raises:
        SchemaError: a score or grade that is not finite, or a document twice for a query; names the row.
        ConfigError: an unknown measure.
    """
    parsed = {name: Measure.parse(name) for name in measures}
    grade = _qrels_grades(judgments)
    score = _checked_scores(_numbers(run, "score"), "run")
    query_names, (run_query, judged_query) = _codes(run, judgments, "query_id")
    doc_names, (run_doc, judged_doc) = _codes(run, judgments, "doc_id")
    run_key = run_query * len(doc_names) + run_doc
    judged_key = judged_query * len(doc_names) + judged_doc
    _refuse_doubles(run_key, run, "run")
    _refuse_doubles(judged_key, judgments, "judgments")

    # Judged queries are numbered anew, from 0, so that all later arrays are as long as there are of them.
    wanted, judged_query = np.unique(judged_query, return_inverse=True)
    number = np.full(len(query_names), -1, dtype=np.int64)
    number[wanted] = np.arange(len(wanted))
    kept = number[run_query] >= 0
    run_grade, judged = _lookup(run_key[kept], judged_key, grade)
    lists = ordered_lists(
        number[run_query][kept], score[kept], run_doc[kept], run_grade, judged, (judged_query, grade), len(wanted)
    )
    return PerQuery(
        queries=tuple(query_names[number] for number in wanted),
        values={name: _values(lists, measure, relevant_from) for name, measure in parsed.items()},
        missed=lists.total(np.ones(len(lists.query))) == 0,
        unanswerable=lists.ideal_total(lists.ideal_grade >= relevant_from) == 0,
        unjudged_queries=len(np.unique(run_query[~kept])),
    )


def _numbers(table: "pa.Table", column: str) -> Any:
    return table.column(column).to_numpy()


def _codes(run: "pa.Table", judgments: "pa.Table", column: str) -> tuple[list[str], tuple[Ints, Ints]]:
    """All ids of both tables, ascending by bytes, and for each table the index of each row's id among them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    both = pa.chunked_array(
        [chunk for table in (run, judgments) for chunk in table.column(column).cast(pa.large_string()).chunks],
        type=pa.large_string(),
    )
    encoded = both.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    code_of = np.empty(len(order), dtype=np.int64)
    code_of[order] = np.arange(len(order))
    codes = code_of[encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)]
    return encoded.dictionary.take(order).to_pylist(), (codes[: run.num_rows], codes[run.num_rows :])


def _refuse_doubles(keys: Ints, table: "pa.Table", where: str) -> None:
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(again):
        row, before = int(order[again[0] + 1]), int(order[again[0]])
        query, doc = table.column("query_id")[row].as_py(), table.column("doc_id")[row].as_py()
        raise SchemaError(
            f"{where}, {row_name(row)}: document '{doc}' of query '{query}' stands in {row_name(before)} already; keep "
            "one of them"
        )


def _lookup(keys: Ints, judged_keys: Ints, grades: Floats) -> tuple[Floats, Bools]:
    """The grade of each key, 0 where it has none, and whether it has one."""
    if not len(judged_keys):
        return np.zeros(len(keys)), np.zeros(len(keys), dtype=bool)
    order = np.argsort(judged_keys)
    nearest = np.minimum(np.searchsorted(judged_keys[order], keys), len(order) - 1)
    judged = judged_keys[order][nearest] == keys
    return np.where(judged, grades[order][nearest], 0.0), judged
