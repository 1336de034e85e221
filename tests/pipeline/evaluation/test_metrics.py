"""Measures against trec_eval, scikit-learn, a slow loop and worked examples."""

import itertools
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval
from sklearn.metrics import ndcg_score

from pipeline.errors import ConfigError, SchemaError
from pipeline.evaluation.metrics import NAMES, Measure, PerQuery, by_query, evaluate, ndcg

Graded = Mapping[str, Mapping[str, int]]
Scored = Mapping[str, Mapping[str, float]]

TREC = {
    "ndcg_cut_10": "ndcg@10",
    "ndcg_cut_3": "ndcg@3",
    "ndcg": "ndcg",
    "map": "map",
    "map_cut_7": "map@7",
    "recip_rank": "mrr",
    "recall_5": "recall@5",
    "set_recall": "recall",
    "P_5": "precision@5",
}
"""trec_eval's names and ours."""


def qrels_table(qrels: Graded) -> pa.Table:
    rows = [(query, doc, grade) for query, docs in qrels.items() for doc, grade in docs.items()]
    return pa.table(
        {
            "query_id": pa.array([row[0] for row in rows], pa.string()),
            "doc_id": pa.array([row[1] for row in rows], pa.string()),
            "grade": pa.array([row[2] for row in rows], pa.int64()),
        }
    )


def run_table(run: Scored) -> pa.Table:
    rows = [(query, doc, score) for query, docs in run.items() for doc, score in docs.items()]
    return pa.table(
        {
            "query_id": pa.array([row[0] for row in rows], pa.string()),
            "doc_id": pa.array([row[1] for row in rows], pa.string()),
            "score": pa.array([row[2] for row in rows], pa.float64()),
        }
    )


def of(run: Scored, qrels: Graded, *measures: str, relevant_from: float = 1) -> PerQuery:
    return evaluate(run_table(run), qrels_table(qrels), measures, relevant_from=relevant_from)


def random_lists(seed: int, queries: int) -> tuple[Graded, Scored]:
    """Short lists with many ties, some apart only beyond 32-bit floats; unjudged, missing and irrelevant ones too."""
    rng = np.random.default_rng(seed)
    qrels, run = {}, {}
    names = np.array([*(f"d{number}" for number in range(30)), "é", "ß", "文档", "\U0001f600", "\uffee"])
    for number in range(queries):
        docs = rng.permutation(names)
        first, judged, returned = rng.integers(0, 10), rng.integers(1, 20), rng.integers(1, 25)
        top = rng.integers(0, 4)
        qrels[f"q{number}"] = {str(doc): int(rng.integers(0, top + 1)) for doc in docs[:judged]}
        if number % 13:
            scores = rng.integers(-4, 4, size=returned) / 3 + rng.choice([0.0, 1e-9], size=returned)
            run[f"q{number}"] = dict(zip(map(str, docs[first:]), map(float, scores), strict=False))
    return qrels, run


def test_equals_trec_eval_on_ten_thousand_lists_with_ties() -> None:
    qrels, run = random_lists(seed=0, queries=10_000)
    expected = pytrec_eval.RelevanceEvaluator(
        qrels,
        {"ndcg_cut.3,10", "ndcg", "map", "map_cut.7", "recip_rank", "recall.5", "set_recall", "P.5"},
    ).evaluate(run)
    result = of(run, qrels, *TREC.values())
    for theirs, ours in TREC.items():
        # trec_eval leaves out the queries that the run misses; here they are 0.
        values = np.array([expected.get(query, {}).get(theirs, 0.0) for query in result.queries])
        assert np.abs(result.values[ours] - values).max() < 1e-9, ours
        assert 0 < result.mean(ours) < 1
    assert result.missed.sum() == len(qrels) - len(run)


@pytest.mark.parametrize("seed", range(20))
def test_ndcg_equals_scikit_learn_without_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grades, scores = rng.integers(0, 5, size=40), rng.permutation(40).astype(float)
    for k in (1, 5, 10, None):
        assert ndcg(grades, scores, k) == pytest.approx(ndcg_score([grades], [scores], k=k), abs=1e-12)
        exponential = ndcg_score([2.0**grades - 1], [scores], k=k)
        assert ndcg(grades, scores, k, gain="exponential") == pytest.approx(exponential, abs=1e-12)


def test_worked_example_with_a_judged_document_that_is_not_returned() -> None:
    qrels = {"q": {"d1": 1, "d2": 0, "d3": 2, "d4": 3}}
    result = of({"q": {"d1": 3.0, "d2": 2.0, "d3": 1.0}}, qrels, "ndcg@10", "ndcg_exp@10", "ndcg@2", "ndcg_exp@2")
    linear = (1 + 2 / 2) / (3 + 2 / math.log2(3) + 1 / 2)
    assert result.values["ndcg@10"][0] == pytest.approx(linear, abs=1e-12)
    assert result.values["ndcg_exp@10"][0] == pytest.approx((1 + 3 / 2) / (7 + 3 / math.log2(3) + 1 / 2), abs=1e-12)
    assert result.values["ndcg@2"][0] == pytest.approx(1 / (3 + 2 / math.log2(3)), abs=1e-12)
    assert result.values["ndcg_exp@2"][0] == pytest.approx(1 / (7 + 3 / math.log2(3)), abs=1e-12)
    assert ndcg([1, 0, 2], [3.0, 2.0, 1.0], 10, ideal_grades=[1, 0, 2, 3]) == pytest.approx(linear, abs=1e-12)


def test_of_equal_scores_the_greater_id_stands_first_whatever_the_row_order() -> None:
    qrels = {"q": {"d9": 1, "d10": 0}}
    for docs in (("d9", "d10"), ("d10", "d9")):
        assert of({"q": dict.fromkeys(docs, 1.0)}, qrels, "mrr").values["mrr"][0] == 1.0
    # The two scores are one 32-bit float.
    assert of({"q": {"d10": 0.1 + 1e-10, "d9": 0.1}}, qrels, "mrr").values["mrr"][0] == 1.0
    assert ndcg([1, 0], [1.0, 1.0], ids=["d9", "d10"]) == 1.0
    assert ndcg([0, 1], [1.0, 1.0], ids=["d9", "d10"]) == pytest.approx(1 / math.log2(3))


def test_without_ids_a_constant_score_is_worth_the_worst_order() -> None:
    grades = [3, 2, 0, 1]
    worst = min(ndcg(np.array(order), -np.arange(4.0)) for order in itertools.permutations(grades))
    assert ndcg(grades, [1.0] * 4) == pytest.approx(worst)


def test_the_order_of_rows_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    qrels = {f"q{query}": {f"d{doc}": int(rng.integers(0, 4) * (query % 3)) for doc in range(6)} for query in range(9)}
    run = {query: {f"d{doc}": float(rng.integers(0, 5)) for doc in range(3, 12)} for query in [*qrels, "other"]}
    ranked, judged = run_table(run), qrels_table(qrels)
    expected = evaluate(ranked, judged, NAMES)
    assert expected.unanswerable.tolist() == [not any(qrels[query].values()) for query in expected.queries]
    for _ in range(5):
        result = evaluate(
            ranked.take(rng.permutation(len(ranked))), judged.take(rng.permutation(len(judged))), [*NAMES]
        )
        assert result.queries == expected.queries
        for name in ("missed", "unanswerable"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        for name in NAMES:
            np.testing.assert_allclose(result.values[name], expected.values[name], rtol=1e-12)


def test_missed_unanswerable_and_unjudged_queries() -> None:
    qrels = {"missed": {"a": 1}, "nothing": {"a": 0, "b": 0}, "perfect": {"a": 2, "b": 0}}
    result = of({"nothing": {"a": 1.0}, "perfect": {"a": 1.0}, "other": {"a": 1.0}}, qrels, *NAMES)
    assert result.queries == ("missed", "nothing", "perfect")
    assert result.missed.tolist() == [True, False, False]
    assert result.unanswerable.tolist() == [False, True, False]
    assert result.unjudged_queries == 1
    for name in ("ndcg", "ndcg_exp", "mrr", "map", "recall", "precision"):
        assert result.values[name].tolist() == [0.0, 0.0, 1.0]
        assert result.mean(name) == pytest.approx(1 / 3)
    # One pair in all: b is not returned, so it stands below a.
    assert np.isnan(result.values["pairwise"][:2]).all()
    assert result.values["pairwise"][2] == 1.0


def slow_pairwise(grades: Mapping[str, int], scores: Mapping[str, float]) -> float:
    """Every pair by hand; a document that is not returned has the score −∞."""
    if not scores:
        return 0.0
    won = pairs = 0.0
    for high, low in itertools.permutations(grades, 2):
        if grades[high] > grades[low]:
            a, b = (np.float32(scores.get(doc, -math.inf)) for doc in (high, low))
            won += 1.0 if a > b else 0.5 if a == b else 0.0
            pairs += 1
    return won / pairs if pairs else math.nan


def test_pairwise_accuracy_and_judged_share_equal_slow_loops() -> None:
    qrels, run = random_lists(seed=1, queries=400)
    result = of(run, qrels, "pairwise", "judged@10")
    for row, query in enumerate(result.queries):
        scores = run.get(query, {})
        expected = slow_pairwise(qrels[query], scores)
        if math.isnan(slow_pairwise(qrels[query], {**scores, "": 0.0})):
            expected = math.nan
        assert result.values["pairwise"][row] == pytest.approx(expected, nan_ok=True), query
        top = sorted(scores, key=lambda doc: (np.float32(scores[doc]), doc.encode()), reverse=True)[:10]
        judged = sum(doc in qrels[query] for doc in top) / len(top) if top else 0.0
        assert result.values["judged@10"][row] == pytest.approx(judged), query


def test_relevant_from_raises_the_bar_of_binary_measures_only() -> None:
    qrels, run = {"q": {"a": 1, "b": 2}}, {"q": {"a": 2.0, "b": 1.0}}
    low, high = (of(run, qrels, "mrr", "recall@1", "ndcg", relevant_from=grade) for grade in (1, 2))
    assert (low.values["mrr"][0], high.values["mrr"][0]) == (1.0, 0.5)
    assert (low.values["recall@1"][0], high.values["recall@1"][0]) == (0.5, 0.0)
    assert low.values["ndcg"][0] == high.values["ndcg"][0]


def test_lists_judged_throughout_give_the_same_as_tables() -> None:
    rng = np.random.default_rng(2)
    queries = rng.integers(0, 50, size=2_000)
    docs = [f"d{number}" for number in rng.permutation(2_000)]
    grades, scores = rng.integers(0, 4, size=2_000), rng.integers(0, 9, size=2_000) / 7
    names = [f"q{query:02}" for query in queries]
    measures = ["ndcg@10", "ndcg_exp@5", "map", "pairwise"]
    expected = evaluate(
        pa.table({"query_id": names, "doc_id": docs, "score": scores}),
        pa.table({"query_id": names, "doc_id": docs, "grade": grades}),
        measures,
    )
    for keys in (queries, names):
        values = by_query(keys, grades, scores, measures, ids=docs)
        for name in measures:
            np.testing.assert_allclose(values[name], expected.values[name])
    of_seven = queries == 7
    alone = ndcg(
        grades[of_seven], scores[of_seven], 10, ids=[doc for doc, kept in zip(docs, of_seven, strict=True) if kept]
    )
    assert alone == pytest.approx(expected.values["ndcg@10"][expected.queries.index("q07")])


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e39])
def test_a_score_that_is_no_number_is_refused_with_its_row(score: float) -> None:
    with pytest.raises(SchemaError, match=r"run, row 2: score .* is not a finite"):
        of({"q": {"a": 1.0, "b": score}}, {"q": {"a": 1}}, "ndcg")
    with pytest.raises(SchemaError, match="row 2"):
        by_query([0, 0], [1, 0], [1.0, score])


def test_negative_grades_of_training_lists_are_refused_and_those_of_qrels_count_as_0() -> None:
    with pytest.raises(SchemaError, match="row 2: grade -1"):
        by_query([0, 0], [1, -1], [1.0, 2.0])
    qrels, run = {"q": {"a": 1, "b": -1, "c": 0}}, {"q": {"b": 3.0, "a": 2.0, "c": 1.0}}
    as_zero = of(run, {"q": {"a": 1, "b": 0, "c": 0}}, *NAMES)
    for name, values in of(run, qrels, *NAMES).values.items():
        assert values.tolist() == as_zero.values[name].tolist(), name
    table = pa.table({"query_id": ["q"], "doc_id": ["a"], "grade": [math.nan]})
    with pytest.raises(SchemaError, match="judgments, row 1: grade nan"):
        evaluate(run_table(run), table, ["ndcg"])


def test_doubles_are_refused_with_their_row() -> None:
    run = run_table({"q": {"a": 1.0, "b": 2.0}})
    with pytest.raises(SchemaError, match=r"run, row 4: document 'b' of query 'q' stands in row 2"):
        evaluate(
            pa.concat_tables([run, run_table({"p": {"b": 1.0}}), run.slice(1, 1)]),
            qrels_table({"q": {"a": 1}}),
            ["ndcg"],
        )
    doubled = pa.concat_tables([qrels_table({"q": {"a": 1}}), qrels_table({"q": {"a": 0}})])
    with pytest.raises(SchemaError, match=r"judgments, row 2: document 'a' of query 'q' stands in row 1"):
        evaluate(run, doubled, ["ndcg"])


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(SchemaError, match="3 grades, 2 scores"):
        ndcg([1, 0, 0], [1.0, 2.0])
    with pytest.raises(SchemaError, match="1 ids"):
        by_query([0, 0], [1, 0], [1.0, 2.0], ids=["a"])


@pytest.mark.parametrize("name", ["dcg", "ndcg@0", "ndcg@", "pairwise@5", "NDCG@10"])
def test_an_unknown_measure_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no measure"):
        Measure.parse(name)


@pytest.mark.parametrize("queries", [{}, {"q": {"a": 1, "b": 0}}])
def test_empty_runs_and_empty_judgments(queries: Graded) -> None:
    empty = of({}, queries, *NAMES)
    assert len(empty.queries) == len(queries)
    assert all(np.all(values == 0) for values in empty.values.values())
    assert of({"x": {"a": 1.0}}, queries, "ndcg").unjudged_queries == 1


def test_the_work_in_python_does_not_grow_with_the_rows() -> None:
    """Rows are handled in arrays: four times the rows cost as many calls of Python functions, not more."""

    def calls(rows: int) -> int:
        rng = np.random.default_rng(3)
        names = {"query_id": [f"q{row % 50}" for row in range(rows)], "doc_id": [f"d{row}" for row in range(rows)]}
        run = pa.table({**names, "score": rng.normal(size=rows)})
        judgments = pa.table({**names, "grade": rng.integers(0, 4, size=rows)})
        count = 0

        def profile(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            evaluate(run, judgments, ["ndcg@10", "map", "pairwise"])
        finally:
            sys.setprofile(None)
        return count

    calls(1_000)  # Imports and caches.
    assert calls(20_000) <= calls(5_000) + 20 < 5_000
