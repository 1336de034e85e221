"""Counts of `check` against slow loops over the same rows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from pipeline.config import SourceConfig
from pipeline.data.checks import check, check_tables, text_lengths


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    documents = {
        "doc_id": ["a", "b", "c", "d"],
        "title": ["Red shoe", "红色的鞋子", "", "Red shoe"],
        "text": ["", "very comfortable", "", ""],
    }
    pd.DataFrame(documents).to_parquet(tmp_path / "documents.parquet")
    queries = {
        "query_id": ["q1", "q2", "q3", "q4", "q5"],
        "text": ["red shoe", "鞋", "12345", "<b>shoe</b>", "RED  shoe"],
    }
    pd.DataFrame(queries).to_parquet(tmp_path / "queries.parquet")
    rows = [
        ("q1", "a", 2, "train"),
        ("q1", "b", 0, "train"),
        ("q1", "a", 2, "train"),
        ("q2", "b", 1, None),
        ("q3", "c", 1, None),
        ("q3", "d", 1, None),
        ("q5", "d", 1, "test"),
    ]
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "grade", "split"])
    frame.to_parquet(tmp_path / "judgments.parquet")
    return tmp_path


def test_counts_and_what_is_odd(shop: Path) -> None:
    (report,) = check.examine([SourceConfig(path=str(shop))], Path())
    assert (report.documents, report.queries, report.judged_queries, report.judgments) == (4, 5, 4, 7)
    assert report.grades == {"0": 1, "1": 4, "2": 2}
    assert report.splits == {
        "train": {"queries": 1, "judgments": 3},
        "test": {"queries": 1, "judgments": 1},
        "none": {"queries": 2, "judgments": 3},
    }
    assert report.list_lengths == text_lengths.Distribution(1, 1.5, 1.75, 2.85, 3)
    assert report.one_grade_queries == 3
    assert {name: (notice.count, notice.examples) for name, notice in report.noticed.items()} == {
        "queries of one character": (1, ("鞋",)),
        "queries with no letters": (1, ("12345",)),
        "queries with markup": (1, ("<b>shoe</b>",)),
        "queries without judgments": (1, ("<b>shoe</b>",)),
        "queries that are the same when normalised": (1, ("red shoe",)),
        "queries in more than one published split": (1, ("red shoe (train, test)",)),
        "documents without title and text": (1, ("c",)),
        "documents of the same title and text": (1, ("d",)),
        "equal judgments of one pair, which are merged": (1, ("red shoe: Red shoe",)),
    }
    assert report.faults == ()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("红色的鞋子", 5),
        ("red shoe", 2.6),
        ("iPhone手机壳 case", 3 + 2.6),
        ("ひらがな カタカナ", 8),
        ("신발", 2),
    ],
)
def test_tokens_are_estimated_by_script(text: str, tokens: float) -> None:
    assert text_lengths.estimate_tokens(pa.chunked_array([[text]])).to_pylist() == [pytest.approx(tokens)]


def test_a_spread_is_that_of_numpy() -> None:
    values = np.random.default_rng(1).random(1000) * 1000
    spread = text_lengths.distribution(values)
    assert spread is not None
    assert (spread.least, spread.median, spread.most) == pytest.approx(
        (values.min(), np.median(values), values.max()), abs=0.01
    )
    assert spread.mean == pytest.approx(values.mean(), abs=0.01)
    assert (values <= spread.most_95).mean() == pytest.approx(0.95, abs=0.01)
    assert text_lengths.distribution([]) is None


def test_the_report_is_plain_for_json_and_readable_on_a_terminal(shop: Path) -> None:
    file = shop / "judgments.parquet"
    frame = pd.read_parquet(file)
    frame.loc[len(frame)] = ["q1", "[red]nothing[/red]", 1, "train"]
    frame.to_parquet(file)
    (report,) = check.examine([SourceConfig(path=str(shop))], Path())
    assert json.loads(json.dumps(report.to_dict()))["faults"] == [
        {
            "table": "judgments",
            "row": 8,
            "where": "row 8",
            "reason": "doc_id '[red]nothing[/red]' is not among the documents",
        }
    ]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(check_tables.render(report))
    console.file.close()
    shown = console.export_text()
    for words in ("judged queries", "4", "鞋", "doc_id '[red]nothing[/red]' is not among", "estimated"):
        assert words in shown


def test_documents_alone_can_be_checked(shop: Path) -> None:
    (shop / "judgments.parquet").unlink()
    (shop / "queries.parquet").unlink()
    (report,) = check.examine([SourceConfig(path=str(shop))], Path())
    assert (report.documents, report.judgments, report.list_lengths) == (4, 0, None)
    assert check_tables.render(report)


def test_a_document_of_two_tables_of_a_collection_counts_once(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("query,doc_id,title,grade\nknife,1,a knife,1\n", encoding="utf-8")
    (tmp_path / "documents.csv").write_text("doc_id,title\n1,a knife\n2,a fork\n", encoding="utf-8")
    described = {"doc_id": "doc_id", "title": "title"}
    judged = SourceConfig(path="ratings.csv", name="shop", columns={**described, "query": "query", "grade": "grade"})
    sources = [judged, SourceConfig(path="documents.csv", name="shop", columns=described)]
    (report,) = check.examine(sources, tmp_path)
    assert (report.documents, report.judgments, report.faults) == (2, 1, ())
