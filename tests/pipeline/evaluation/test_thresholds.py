"""Counts above a threshold, against a slow loop; queries to try."""

import math
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from pipeline import artifacts, schema
from pipeline.evaluation import queries_to_try, systems, thresholds


def test_each_threshold_counts_the_judged_documents_above_it() -> None:
    rng = random.Random(4)
    run = [(f"q{q}", f"d{d}", rng.gauss(0, 3)) for q in range(5) for d in range(20)]
    grades = {(q, d): rng.randrange(3) for q, d, _ in run if rng.random() < 0.6}
    grades["q0", "not ranked"] = 2
    columns = zip(*run, strict=True)
    ranked = {systems.RANKER: pa.table(dict(zip(("query_id", "doc_id", "score"), map(list, columns), strict=True)))}
    judged = [(q, d, grade) for (q, d), grade in grades.items()]
    table = pa.table(dict(zip(("query_id", "doc_id", "grade"), map(list, zip(*judged, strict=True)), strict=True)))
    rows = thresholds.measure(ranked, table, relevant_from=2)
    assert [row["least"] for row in rows] == pytest.approx([step / 20 for step in range(20)])
    known = [(1 / (1 + math.exp(-score)), grades[q, d]) for q, d, score in run if (q, d) in grades]
    everything = sum(grade >= 2 for _, grade in known)
    for row in rows:
        above = [grade for score, grade in known if score >= row["least"]]
        hits = sum(grade >= 2 for grade in above)
        ranked_above = [score for _, _, score in run if 1 / (1 + math.exp(-score)) >= row["least"]]
        assert (row["ranked"], row["judged"], row["relevant"]) == (len(ranked_above), len(above), hits)
        assert row["of_relevant"] == pytest.approx(hits / everything)
    assert thresholds.measure({"BM25": ranked[systems.RANKER]}, table, 1) == []


def test_a_document_with_exactly_the_threshold_is_above_it() -> None:
    run = pa.table({"query_id": ["q"], "doc_id": ["d"], "score": [0.0]})  # Its logistic function is 0.5.
    judged = pa.table({"query_id": ["q"], "doc_id": ["d"], "grade": [1]})
    rows = thresholds.measure({systems.RANKER: run}, judged, 1)
    assert [row["least"] for row in rows if row["ranked"]] == [step / 20 for step in range(11)]


@pytest.mark.parametrize(
    ("text", "natural"),
    [
        ("read a csv file", True),
        ("What's the largest city?", True),
        ("如何学习编程", True),
        ("pandas.read_csv", False),
        ("hammer", False),
        ("x" * 50, False),
        ("a b\nc d", False),
        ("error 0x80070005 in line 12", False),
        ("one two three four five six seven eight", False),
    ],
)
def test_a_query_to_try_reads_like_one_that_a_person_types(text: str, natural: bool) -> None:
    assert queries_to_try.is_natural(text) is natural


def test_queries_to_try_are_few_and_the_same_each_time() -> None:
    texts = [f"a good {word} query" for word in "abcdefghi"]
    chosen = queries_to_try.chosen([*texts, *texts, "no"])
    assert len(chosen) == len(set(chosen)) == queries_to_try.COUNT
    assert chosen == queries_to_try.chosen(reversed(texts))


def test_the_queries_to_try_of_a_report_are_answered_well(tmp_path: Path) -> None:
    texts = {f"q{number}": f"a good query {letter}" for number, letter in enumerate("abcdefgh")} | {
        "q8": "one",
        "q9": "1 2",
    }

    def write(staging: artifacts.Staging) -> dict[str, int]:
        table = pa.table({"query_id": list(texts), "text": list(texts.values())})
        schema.write(table, staging.folder / "queries.parquet", "queries")
        return {}

    data = artifacts.make(tmp_path, "data", version=1, config={}, inputs={}, build=write)
    values = pd.Series({name: number / 10 for number, name in enumerate(texts)})
    offered = queries_to_try.of_report(data, values)
    assert sorted(offered) == ["a good query f", "a good query g", "a good query h"]
