"""Fields of nested objects are columns called by their paths, in JSON lines and in Parquet alike."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import source_columns
from flows import sources as named
from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.data.formats import nested, parquet_reader
from pipeline.data.formats.column_map import samples_of, suggest
from pipeline.errors import SchemaError
from tests.reads import bytes_read

ROWS: Sequence[Mapping[str, Any]] = [
    {"query": "knife", "product": {"title": "a knife", "spec": {"brand": "Å"}}, "grade": 2},
    {"query": "spoon", "product": {"title": None, "spec": None}, "grade": 0},
    {"query": "fork", "product": None, "grade": 1},
]
COLUMNS = {"query": "query", "title": "product.title", "grade": "grade", "brand": "product.spec.brand"}


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
    else:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(params=["r.jsonl", "r.parquet"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_path_reads_the_field_and_is_null_where_an_object_is(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ROWS)
    read = sources.read(SourceConfig(path=str(file), columns=COLUMNS), Path())
    assert read.documents["title"].to_pylist() == ["a knife", ""]
    assert read.documents["brand"].to_pylist() == ["Å", None]
    assert read.judgments["grade"].to_pylist() == [2, 0, 1]


def test_a_column_of_that_very_name_comes_before_the_path(tmp_path: Path, name: str) -> None:
    rows = [{"product": {"title": "nested"}, "product.title": "literal", "a.b": {"c.d": {"e": "deep"}}}]
    file = write(tmp_path / name, rows)
    columns = {"title": "product.title", "text": "a.b.c.d.e"}
    read = sources.read(SourceConfig(path=str(file), columns=columns), Path())
    assert read.documents.select(["title", "text"]).to_pylist() == [{"title": "literal", "text": "deep"}]


def test_fields_are_listed_and_guessed_and_objects_are_not(tmp_path: Path, name: str) -> None:
    rows = [{"document": None, "query": "a"}, {"document": {"id": "7", "text": "b"}, "query": "c"}]
    file = write(tmp_path / name, rows if name.endswith(".jsonl") else rows[1:])
    samples = samples_of(file)
    assert samples == {"document.id": "7", "document.text": "b", "query": samples["query"]}
    assert suggest(list(samples)) == {"query": "query", "text": "document.text", "doc_id": "document.id"}
    (source,) = named.of_any_data(str(write(tmp_path / name, ROWS)))
    assert source.columns == {"query": "query", "title": "product.title", "grade": "grade"}


def test_an_object_may_be_kept_as_a_column(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ROWS[:1])
    (source,) = named.of_any_data(str(file), columns={"title": "product.title", "about": "product"})
    documents = sources.read(source, Path()).documents
    assert documents["about"].to_pylist() == [{"title": "a knife", "spec": {"brand": "Å"}}]


def test_an_absent_path_is_named_with_the_nearest_one(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ROWS)
    for read in (lambda config: sources.read(config, Path()), lambda config: source_columns.with_columns(config, None)):
        with pytest.raises(SchemaError, match=r"'product\.titel'") as refused:
            read(SourceConfig(path=str(file), columns={"query": "query", "title": "product.titel"}))
        assert "did you mean 'product.title' in place of 'product.titel'?" in str(refused.value)
        assert "title=product.title" in str(refused.value)


def test_the_fields_of_the_objects_of_a_list_are_lists(tmp_path: Path, name: str) -> None:
    rows = [
        {"query": "a", "passages": [{"text": "b", "meta": {"best": 1}}, {"text": "c", "meta": {"best": 0}}]},
        {"query": "d", "passages": []},
        {"query": "e", "passages": None},
        {"query": "f", "passages": [{"text": "g", "meta": {"best": 1}}]},
    ]
    file = write(tmp_path / name, rows)
    assert list(samples_of(file)) == ["query", "passages.text", "passages.meta.best"]
    columns = {"query": "query", "text": "passages.text", "grade": "passages.meta.best"}
    read = sources.read(SourceConfig(path=str(file), columns=columns), Path())
    assert read.documents["text"].to_pylist() == ["b", "c", "g"]
    assert read.judgments["grade"].to_pylist() == [1, 0, 1]


def test_lists_within_lists_are_one_list_and_null_is_no_object(tmp_path: Path, name: str) -> None:
    rows = [
        {"query": "a", "passages": [{"lines": [{"text": "b"}, {"text": "c"}]}, {"lines": None}]},
        {"query": "d", "passages": [None, {"lines": [None, {"text": "e"}]}, {"lines": []}, {"lines": [{"text": "f"}]}]},
        {"query": "g", "passages": None},
    ]
    file = write(tmp_path / name, rows)
    assert list(samples_of(file)) == ["query", "passages.lines.text"]
    columns = {"query": "query", "text": "passages.lines.text"}
    read = sources.read(SourceConfig(path=str(file), columns=columns), Path())
    assert read.documents["text"].to_pylist() == ["b\nc", "e\nf", ""]
    pairs = [
        {"query": "a", "texts": [["b", "c"], None, []], "grades": [[1], [0]]},
        {"query": "d", "texts": [["e"]], "grades": [[1]]},
    ]
    columns = {"query": "query", "text": "texts", "grade": "grades"}
    read = sources.read(SourceConfig(path=str(write(tmp_path / name, pairs)), columns=columns), Path())
    assert read.documents["text"].to_pylist() == ["b", "c", "e"]
    assert read.judgments["grade"].to_pylist() == [1, 0, 1]


def test_a_list_whose_first_entry_is_null_is_a_column(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [{"query": "a", "texts": [None]}, {"query": "b", "texts": ["c"]}])
    assert list(samples_of(file)) == ["query", "texts"]


def test_a_list_of_texts_has_no_fields(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"query": "a", "product": ["b"], "grade": 1}])
    with pytest.raises(SchemaError, match=r"'product' has no field 'title': .* also those of a list") as refused:
        sources.read(SourceConfig(path=str(file), columns={"title": "product.title"}), Path())
    assert "title=product " not in str(refused.value)


@pytest.mark.parametrize("value", ["a text", 3, [1]])
def test_a_row_with_another_value_in_place_of_the_object_is_named(tmp_path: Path, value: Any) -> None:
    rows = [{"product": {"title": "b"}}, {}, {"product": value}]
    file = tmp_path / "r.jsonl"
    file.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(SchemaError, match=r"line 5: 'product' is .*, not an object, and 'product.title' names a field"):
        sources.read(SourceConfig(path=str(file), columns={"title": "product.title"}), Path())


def test_a_name_that_only_wraps_a_document_says_nothing() -> None:
    names = ["_id", "_source.title", "_source.body", "seller.name", "seller.id"]
    assert suggest(names) == {"title": "_source.title", "text": "_source.body", "doc_id": "_id"}


def test_a_log_line_on_many_fields_stays_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    features = {f"feature {number}": number for number in range(1000)}
    file = write(tmp_path / "r.jsonl", [{"query": "a", "title": "b", "grade": 1, "features": features}])
    with caplog.at_level("INFO"):
        named.of_any_data(str(file))
    assert "features.feature 39, and 960 more)" in caplog.text
    assert "features.feature 40," not in caplog.text


def test_objects_are_opened_to_a_bound() -> None:
    row: dict[str, Any] = {"end": 1}
    for _ in range(500):
        row = {"a": row}
    assert len(nested.flat(row)) == nested.MOST_LEVELS


@pytest.mark.parametrize("wanted", [["title"], ["of.name", "query"], ["tags.name"], ["of"], ["with.dot", "title"]])
def test_nothing_but_the_wanted_columns_of_a_parquet_file_is_read(tmp_path: Path, wanted: list[str]) -> None:
    columns: dict[str, Any] = {
        "query": pa.array(["knife", "spoon"] * 50).dictionary_encode(),
        "of": [{"name": f"maker {row}", "at": {"city": "Rom"}} for row in range(100)],
        "tags": [[{"name": "a"}, {"name": str(row)}] for row in range(100)],
        "title": [f"title {row}" for row in range(100)],
    }
    dotted = {"with.dot": ["x"] * 100} if "with.dot" in wanted else {}
    vectors = {"vectors": [os.urandom(50_000) for _ in range(100)]}
    file = tmp_path / "r.parquet"
    pq.write_table(pa.table(columns | dotted | vectors), file)
    before = bytes_read()
    alone = parquet_reader.read_foreign(file, wanted, wanted_only=True)
    assert dotted or bytes_read() - before < file.stat().st_size / 4
    assert alone.select(wanted).equals(parquet_reader.read_foreign(file, wanted).select(wanted))
