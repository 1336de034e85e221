"""The artifact `data`: several sources in one set of tables, nothing lost that is not counted."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import judgments
from pipeline.errors import ConfigError, MissingError, SchemaError

Rows = Sequence[tuple[Any, ...]]


def folder(
    path: Path, documents: Rows = (), queries: Rows = (), judged: Rows = (), columns: Sequence[str] = ()
) -> SourceConfig:
    """A source in our layout; `columns` are those of a judgment after query, document and grade."""
    path.mkdir()
    pd.DataFrame(documents, columns=["doc_id", "title", "text"]).astype(str).to_parquet(path / "documents.parquet")
    pd.DataFrame(queries, columns=["query_id", "text"]).astype(str).to_parquet(path / "queries.parquet")
    frame = pd.DataFrame(judged, columns=["query_id", "doc_id", "grade", *columns])
    frame.astype({"query_id": str, "doc_id": str, "grade": int}).to_parquet(path / "judgments.parquet")
    return SourceConfig(path=str(path))


def plain(path: Path, count: int = 40) -> SourceConfig:
    """Writes as many queries as documents; query n judges documents n and n + 1."""
    return folder(
        path,
        [(f"d{n}", f"title {n}", "") for n in range(count + 1)],
        [(f"q{n}", f"query {n}") for n in range(count)],
        [(f"q{n}", f"d{n + more}", more) for n in range(count) for more in (0, 1)],
    )


def tables(data: Artifact) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    frames = [schema.read(data.file(f"{kind}.parquet"), kind) for kind in ("documents", "queries", "judgments")]
    documents, queries, rows = (table.to_pandas() for table in frames)
    return documents, queries, rows


def test_the_tables_are_those_of_the_source_with_split_source_and_slice_filled(tmp_path: Path) -> None:
    data = judgments.make(tmp_path / "w", DataConfig(sources=(plain(tmp_path / "shop"),)))
    documents, queries, rows = tables(data)
    assert documents["doc_id"].tolist() == [f"d{n}" for n in range(41)]
    assert set(queries["slice"]) == {"shop"}
    assert set(rows["source"]) == {"human"}
    assert rows[["query_id", "doc_id", "grade"]].values.tolist()[:2] == [["q0", "d0", 0], ["q0", "d1", 1]]
    assert (rows.groupby("query_id")["split"].nunique() == 1).all()
    assert data.metrics["splits"] == {
        split: {"queries": len(part["query_id"].unique()), "judgments": len(part)}
        for split, part in rows.groupby("split")
    }
    assert data.metrics["grades"] == {"0": 40, "1": 40}
    assert data.metrics["dropped"] == {}


def test_the_same_content_elsewhere_is_the_same_artifact_and_is_not_made_again(tmp_path: Path) -> None:
    first = judgments.make(tmp_path / "w", DataConfig(sources=(plain(tmp_path / "shop"),)))
    (tmp_path / "moved").mkdir()
    (tmp_path / "shop").rename(tmp_path / "moved" / "shop")
    root = str(tmp_path / "moved")
    again = judgments.make(tmp_path / "w", DataConfig(root=root, sources=(SourceConfig(path="shop"),)))
    assert again == first
    other = judgments.make(tmp_path / "w", DataConfig(root=root, sources=(SourceConfig(path="shop"),), seed=1))
    assert other.fingerprint != first.fingerprint


def test_ids_of_several_sources_are_kept_apart_by_name(tmp_path: Path) -> None:
    sources = (plain(tmp_path / "one", 3), plain(tmp_path / "two", 3))
    documents, queries, rows = tables(judgments.make(tmp_path / "w", DataConfig(sources=sources)))
    assert documents["doc_id"].tolist() == [f"{name}:d{n}" for name in ("one", "two") for n in range(4)]
    assert queries["slice"].tolist() == ["one"] * 3 + ["two"] * 3
    assert set(rows["query_id"].str.partition(":")[0]) == {"one", "two"}
    # The same query in both sources is on the same side.
    sides = rows.assign(bare=rows["query_id"].str.partition(":")[2]).groupby("bare")["split"].nunique()
    assert (sides == 1).all()


def test_sources_of_one_name_are_one_collection(tmp_path: Path) -> None:
    source = plain(tmp_path / "judged", 5)
    documents = pq.read_table(tmp_path / "judged" / "documents.parquet").to_pandas()
    (tmp_path / "judged" / "documents.parquet").unlink()
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        documents.to_sql("documents", connection, index=False)
    connection.close()
    config = DataConfig(
        root=str(tmp_path),
        sources=(SourceConfig(path="sqlite:///shop.db", name="shop"), SourceConfig(path="judged", name="shop")),
    )
    collection, _, rows = tables(judgments.make(tmp_path / "w", config))
    assert (len(collection), len(rows)) == (6, 10)
    assert collection["doc_id"].tolist() == sorted(documents["doc_id"])
    assert source.path == str(tmp_path / "judged")


def test_columns_of_documents_are_kept_where_sources_differ(tmp_path: Path) -> None:
    sources = (plain(tmp_path / "one", 2), plain(tmp_path / "two", 2))
    file = tmp_path / "two" / "documents.parquet"
    pd.read_parquet(file).assign(upvotes=[1, 2, 3]).to_parquet(file)
    documents, _, _ = tables(judgments.make(tmp_path / "w", DataConfig(sources=sources)))
    assert documents["upvotes"].fillna(-1).tolist() == [-1, -1, -1, 1, 2, 3]


def test_columns_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    sources = (plain(tmp_path / "one", 2), plain(tmp_path / "two", 2))
    for name, values in (("one", [1, 2, 3]), ("two", ["a", "b", "c"])):
        file = tmp_path / name / "documents.parquet"
        pd.read_parquet(file).assign(brand=values).to_parquet(file)
    with pytest.raises(SchemaError, match="brand"):
        judgments.make(tmp_path / "w", DataConfig(sources=sources))


CONFLICT = [("q", "a", 1), ("q", "b", 2), ("q", "a", 2), ("q", "b", 2), ("q", "a", 1)]


@pytest.mark.parametrize(("how", "grades"), [("max", [2, 2]), ("mean", [1, 2])])
def test_grades_in_conflict_become_one(tmp_path: Path, how: Any, grades: list[int]) -> None:
    source = folder(tmp_path / "s", [("a", "", "x"), ("b", "", "y")], [("q", "query")], CONFLICT)
    data = judgments.make(tmp_path / "w", DataConfig(sources=(source,), conflicts=how))
    _, _, rows = tables(data)
    assert list(zip(rows["doc_id"], rows["grade"], strict=True)) == [("a", grades[0]), ("b", grades[1])]
    assert data.metrics["merged"] == {"repeated texts": 0, "judgments": 3, "conflicts": 1}


def test_a_mean_between_two_grades_rounds_up(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", [("a", "", "x")], [("q", "query")], [("q", "a", 0), ("q", "a", 1)])
    _, _, rows = tables(judgments.make(tmp_path / "w", DataConfig(sources=(source,), conflicts="mean")))
    assert rows["grade"].tolist() == [1]


@pytest.mark.parametrize("faulty_rows", ["error", "drop"])
def test_grades_in_conflict_are_an_error_by_default(tmp_path: Path, faulty_rows: Any) -> None:
    source = folder(tmp_path / "s", [("a", "", "x"), ("b", "", "y")], [("q", "query")], CONFLICT)
    message = r"judgments, row 3: query_id 'q', doc_id 'a' has grade 2 here and 1 before.*data.conflicts"
    with pytest.raises(SchemaError, match=message):
        judgments.make(tmp_path / "w", DataConfig(sources=(source,), faulty_rows=faulty_rows))


def test_people_and_clicks_may_disagree_and_so_may_title_and_content(tmp_path: Path) -> None:
    judged = [
        ("q", "a", 2, "human", "title"),
        ("q", "a", 0, "human", "content"),
        ("q", "a", 1, "click", None),
        ("q", "a", 2, None, "title"),
    ]
    source = folder(tmp_path / "s", [("a", "", "x")], [("q", "query")], judged, ("source", "field"))
    data = judgments.make(tmp_path / "w", DataConfig(sources=(source,)))
    _, _, rows = tables(data)
    assert list(zip(rows["grade"], rows["source"], rows["field"].fillna(""), strict=True)) == [
        (2, "human", "title"),
        (0, "human", "content"),
        (1, "click", ""),
    ]
    assert data.metrics["kinds"] == {"click": 1, "human": 2}


def test_rows_that_cannot_be_used_are_dropped_and_counted_by_reason(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "s",
        [("a", "", "x"), ("nul", "t\x00", ""), ("a", "", "x"), ("a", "", "other"), ("long", "", "y" * 1_000_001)],
        [("q", "query"), ("none", "  "), ("", "no id")],
        [
            ("q", "a", 1),
            ("q", "nul", 1),
            ("q", "gone", 2),
            ("none", "a", 0),
            ("who", "a", 0),
            ("q", "a", 11),
            ("q", "a", -1),
        ],
    )
    data = judgments.make(tmp_path / "w", DataConfig(sources=(source,), faulty_rows="drop"))
    documents, queries, rows = tables(data)
    assert documents[["doc_id", "text"]].values.tolist() == [["a", "x"]]
    assert queries["query_id"].tolist() == ["q"]
    assert rows[["query_id", "doc_id", "grade"]].values.tolist() == [["q", "a", 1]]
    assert data.metrics["dropped"] == {
        "documents": {"text": 2, "repeated id": 1},
        "queries": {"empty query": 1, "empty id": 1},
        "judgments": {
            "grade": 2,
            "unusable query_id": 1,
            "unknown query_id": 1,
            "unusable doc_id": 1,
            "unknown doc_id": 1,
        },
    }
    assert data.metrics["merged"]["repeated texts"] == 1


def test_at_most_so_many_queries_of_each_split_and_the_others_leave(tmp_path: Path) -> None:
    source = plain(tmp_path / "s", 200)
    uncut = judgments.make(tmp_path / "w", DataConfig(sources=(source,)))
    config = DataConfig(sources=(source,), train_queries=20, valid_queries=5, test_queries=7)
    data = judgments.make(tmp_path / "w", config)
    assert {split: counts["queries"] for split, counts in data.metrics["splits"].items()} == {
        "train": 20,
        "valid": 5,
        "test": 7,
    }
    _, queries, rows = tables(data)
    assert set(queries["query_id"]) == set(rows["query_id"])
    assert data.metrics["left_out"]["queries"] == 200 - 32
    before = tables(uncut)[2].set_index(["query_id", "doc_id"])["split"]
    assert (
        rows.set_index(["query_id", "doc_id"])["split"]
        == before.loc[list(zip(rows["query_id"], rows["doc_id"], strict=True))]
    ).all()


def test_at_most_so_many_documents_are_the_judged_ones_and_some_others(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "s",
        [(f"d{n}", f"title {n}", "") for n in range(100)],
        [("q", "query")],
        [("q", "d50", 1), ("q", "d3", 0)],
    )
    data = judgments.make(tmp_path / "w", DataConfig(sources=(source,), max_documents=10))
    ids = tables(data)[0]["doc_id"].tolist()
    assert len(ids) == 10
    assert {"d3", "d50"} < set(ids)
    assert ids == sorted(ids, key=lambda name: int(name[1:]))  # In the order of the source.
    more = tables(judgments.make(tmp_path / "w", DataConfig(sources=(source,), max_documents=20)))[0]["doc_id"]
    assert set(ids) < set(more)


def test_fewer_documents_than_are_judged_cannot_be_asked_for(tmp_path: Path) -> None:
    advice = r"raise it, or take fewer queries by data\.train_queries"
    with pytest.raises(ConfigError, match=rf"max_documents is 10, but 41 documents are judged; {advice}"):
        judgments.make(tmp_path / "w", DataConfig(sources=(plain(tmp_path / "s"),), max_documents=10))


def test_published_splits_that_share_a_query_are_refused_by_their_published_names(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "s",
        [("a", "", "x"), ("b", "", "y")],
        [("q1", "Red shoe"), ("q2", "red  SHOE"), ("q3", "blue")],
        [("q1", "a", 1, "train"), ("q2", "a", 1, "dev"), ("q3", "b", 0, "train")],
        ("split",),
    )
    with pytest.raises(SchemaError, match=r"s: 1 query stands.*'red shoe' in train and valid.*\"hash\""):
        judgments.make(tmp_path / "w", DataConfig(sources=(source,), splits="source"))
    data = judgments.make(tmp_path / "w", DataConfig(sources=(source,), splits="hash"))
    assert data.metrics["judgments"] == 3


def test_empty_documents_stay_and_are_counted(tmp_path: Path) -> None:
    source = folder(tmp_path / "s", [("a", "", ""), ("b", "", "y")], [("q", "query")], [("q", "a", 0)])
    data = judgments.make(tmp_path / "w", DataConfig(sources=(source,)))
    assert (data.metrics["documents"], data.metrics["empty_documents"]) == (2, 1)


def test_no_sources_no_judgments_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.sources is empty"):
        judgments.make(tmp_path, DataConfig())
    with pytest.raises(SchemaError, match="no judgments"):
        judgments.make(tmp_path, DataConfig(sources=(folder(tmp_path / "s", [("a", "", "x")], [("q", "query")]),)))
    with pytest.raises(MissingError, match="no such file or folder"):
        judgments.make(tmp_path, DataConfig(sources=(SourceConfig(path=str(tmp_path / "nowhere")),)))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".partial",) or path.name == "manifest.json"]
