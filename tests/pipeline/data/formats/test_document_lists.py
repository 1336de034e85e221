"""Rows that hold several documents of a query: lists of texts with lists of grades, and relevant beside other texts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import sources as named
from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.data.sources import Source
from pipeline.errors import ConfigError, SchemaError

TRIPLETS = {"query": "query", "positive": "positive", "negative": "negative"}


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
    elif file.suffix == ".csv":
        file.write_text("\n".join(",".join(row) for row in (rows[0].keys(), *(row.values() for row in rows))), "utf-8")
    else:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path, columns: Mapping[str, str]) -> Source:
    return sources.read(SourceConfig(path=str(file), columns=columns), Path())


def judged(source: Source) -> list[tuple[str, str, int]]:
    queries = dict(zip(source.queries["query_id"].to_pylist(), source.queries["text"].to_pylist(), strict=True))
    texts = dict(zip(source.documents["doc_id"].to_pylist(), source.documents["text"].to_pylist(), strict=True))
    return [(queries[row["query_id"]], texts[row["doc_id"]], row["grade"]) for row in source.judgments.to_pylist()]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_triplets_are_pairs_of_grade_1_and_0(tmp_path: Path, name: str) -> None:
    rows = [
        {"query": "knife", "positive": "a knife", "negative": "a fork"},
        {"query": "knife", "positive": "a knife", "negative": "a spoon"},
        {"query": "spoon", "positive": "a spoon", "negative": ""},
    ]
    file = write(tmp_path / name, rows)
    (source,) = named.of_any_data(str(file))
    assert source.columns == TRIPLETS
    assert judged(sources.read(source, Path())) == [
        ("knife", "a knife", 1),
        ("knife", "a fork", 0),
        ("knife", "a knife", 1),
        ("knife", "a spoon", 0),
        ("spoon", "a spoon", 1),
    ]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_each_text_of_a_list_is_a_document(tmp_path: Path, name: str) -> None:
    rows = [
        {"query": "knife", "pos": ["a knife"], "neg": ["a fork", "a spoon"]},
        {"query": "spoon", "pos": ["a spoon", "a ladle"], "neg": None},
    ]
    file = write(tmp_path / name, rows)
    assert judged(read(file, {"query": "query", "positive": "pos", "negative": "neg"})) == [
        ("knife", "a knife", 1),
        ("knife", "a fork", 0),
        ("knife", "a spoon", 0),
        ("spoon", "a spoon", 1),
        ("spoon", "a ladle", 1),
    ]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_lists_of_texts_and_grades_go_together(tmp_path: Path, name: str) -> None:
    rows = [
        {"query": "knife", "passages": {"passage_text": ["a knife", "a fork"], "is_selected": [1, 0]}},
        {"query": "spoon", "passages": {"passage_text": [], "is_selected": []}},
        {"query": "fork", "passages": {"passage_text": ["a fork"], "is_selected": [1]}},
    ]
    (source,) = named.of_any_data(str(write(tmp_path / name, rows)))
    assert judged(sources.read(source, Path())) == [
        ("knife", "a knife", 1),
        ("knife", "a fork", 0),
        ("fork", "a fork", 1),
    ]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_ids_and_grades_of_a_list_of_ratings_go_together(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": "amsterdam", "ratings": [{"_id": "a", "rating": 3}, {"_id": "b", "rating": 0}]},
        {"id": "berlin", "ratings": [{"_id": "c", "rating": 1}]},
    ]
    file = write(tmp_path / name, rows)
    source = read(file, {"query": "id", "doc_id": "ratings._id", "grade": "ratings.rating"})
    assert source.judgments["doc_id"].to_pylist() == ["a", "b", "c"]
    assert source.judgments["grade"].to_pylist() == [3, 0, 1]
    with pytest.raises(SchemaError, match="mapped as doc_id holds lists; map a list of grades too"):
        read(file, {"title": "id", "doc_id": "ratings._id"})


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_lists_of_other_lengths_are_named_by_their_row(tmp_path: Path, name: str) -> None:
    rows = [{"query": "a", "texts": ["b"], "grades": [1]}, {"query": "c", "texts": ["d", "e"], "grades": [1]}]
    file = write(tmp_path / name, rows)
    with pytest.raises(SchemaError, match=r"(line|row) 2 has 1 grade and 2 texts; its lists must be equally long"):
        read(file, {"query": "query", "text": "texts", "grade": "grades"})


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_wrong_grade_of_a_list_is_named_by_the_row_of_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"query": "a", "texts": ["b", "c"], "grades": ["1", "0"]}, {"query": "d", "texts": ["e"], "grades": ["x"]}]
    source = read(write(tmp_path / name, rows), {"query": "query", "text": "texts", "grade": "grades"})
    (fault,) = source.faults
    assert fault.row == 2
    assert source.locations["judgments"]([2]) == ["line 2" if name == "t.jsonl" else "row 2"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_list_of_texts_beside_one_grade_is_one_text(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": "1", "query": "a", "title": ["Red", "lamp"], "text": ["It is red.", "It is a lamp."], "grade": 2},
        {"id": "2", "query": "a", "title": None, "text": [], "grade": 0},
    ]
    columns = {"query": "query", "doc_id": "id", "title": "title", "text": "text", "grade": "grade"}
    source = read(write(tmp_path / name, rows), columns)
    assert source.documents["title"].to_pylist() == ["Red lamp", ""]
    assert source.documents["text"].to_pylist() == ["It is red.\nIt is a lamp.", ""]
    assert source.judgments["grade"].to_pylist() == [2, 0]


def test_a_list_and_a_text_may_stand_in_one_column_of_json(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", [{"title": "a lamp"}, {"title": ["a", "chair"]}, {"title": None}])
    assert read(file, {"title": "title"}).documents["title"].to_pylist() == ["a lamp", "a chair", ""]


@pytest.mark.parametrize("key", ["title", "tags"])
def test_a_text_of_a_list_that_is_no_unicode_is_named_by_its_line(tmp_path: Path, key: str) -> None:
    file = write(tmp_path / "t.jsonl", [{"title": "a", "tags": []}, {"title": "b", "tags": [], key: ["x", "\ud800"]}])
    with pytest.raises(SchemaError, match=rf"line 2: the {key} contains a lone surrogate"):
        read(file, {"title": "title", "tags": "tags"})


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_lists_of_other_things_are_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"title": [{"en": "a lamp"}]}])
    with pytest.raises(SchemaError, match=r"not a text for title|, not text"):
        read(file, {"title": "title"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({**TRIPLETS, "grade": "query"}, "maps positive and grade; positive gives text and grade itself"),
        ({"query": "query", "text": "positive", "negative": "negative"}, "maps negative, but not positive"),
        ({"positive": "positive"}, "maps a grade, but not query or query_id"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path: Path, columns: Mapping[str, str], message: str) -> None:
    file = write(tmp_path / "t.csv", [{"query": "knife", "positive": "a knife", "negative": "a fork"}])
    with pytest.raises(ConfigError, match=message):
        read(file, columns)


@pytest.mark.parametrize(
    ("names", "typed", "read_as"),
    [
        (("query", "title", "positive", "negative"), {}, TRIPLETS),
        (
            ("query", "title", "answer", "negative"),
            {"positive": "answer"},
            {"query": "query", "positive": "answer"},
        ),
        (
            ("query", "positive", "negative", "score"),
            {"text": "positive", "grade": "score"},
            {"query": "query", "text": "positive", "grade": "score"},
        ),
    ],
)
def test_usual_names_complete_a_map_by_keys_that_go_together(
    tmp_path: Path, names: Sequence[str], typed: Mapping[str, str], read_as: Mapping[str, str]
) -> None:
    file = write(tmp_path / "t.csv", [dict.fromkeys(names, "1")])
    assert named.with_columns(SourceConfig(path=str(file), columns=typed), "judgments").columns == read_as


def test_pairs_without_a_grade_are_told_the_key_for_relevant_texts(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", [{"question": "which knife", "answer": "a sharp one"}])
    with pytest.raises(SchemaError, match="is relevant to its query: --columns query=question,positive=answer"):
        named.with_columns(SourceConfig(path=str(file)), "judgments")
