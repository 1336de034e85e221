"""Run files of other tools are read whatever plain types they hold; any other file is one message that names it."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SchemaError
from pipeline.evaluation import runs

LINE = "q1 Q0 d1 1 2.5 system\n"


@pytest.mark.parametrize(
    "columns",
    [
        {"query_id": ["1", "1"], "doc_id": ["2", "3"], "score": [1.5, -2.0]},
        {"query_id": [1, 1], "doc_id": [2, 3], "score": ["1.5", "-2"]},
        {"query_id": [b"1", b"1"], "doc_id": pa.array(["2", "3"]).dictionary_encode(), "score": [1.5, -2.0]},
        {"query_id": ["1", "1"], "doc_id": ["2", "3"], "score": [Decimal("1.5"), Decimal("-2.0")]},
    ],
    ids=["texts", "numbers", "bytes and categories", "decimals"],
)
def test_ids_and_scores_of_any_plain_type_are_read(tmp_path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "run.parquet")
    assert runs.read(tmp_path / "run.parquet", "a").to_pylist() == [
        {"query_id": "1", "doc_id": "2", "score": 1.5},
        {"query_id": "1", "doc_id": "3", "score": -2.0},
    ]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("score", [datetime.datetime(2026, 1, 1)], r"column score holds timestamp\[us\], not numbers"),
        ("score", [[1.0]], "column score holds list.*, not numbers"),
        ("score", ["high"], "column score holds large_string, not numbers .*high"),
        ("doc_id", [{"a": 1}], "column doc_id holds struct.*, not texts or whole numbers"),
        ("query_id", [b"\xff"], "column query_id holds binary, not texts"),
        ("doc_id", [None], "row 1: doc_id is null"),
        ("score", [], "ranks no document for any query"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    given: dict[str, Any] = {"query_id": ["q"], "doc_id": ["d"], "score": [1.0]}
    given = {name: cells[: len(values)] for name, cells in given.items()} | {column: values}
    pq.write_table(pa.table(given), tmp_path / "run.parquet")
    with pytest.raises(SchemaError, match=message) as caught:
        runs.read(tmp_path / "run.parquet", "a")
    assert str(caught.value).startswith(str(tmp_path / "run.parquet"))


@pytest.mark.parametrize("names", [[1, 2], ["1", "2"], [b"1", b"2"], ["1", None], [1.0, 2.0]])
def test_a_system_of_any_plain_type_is_found_by_its_name(tmp_path: Path, names: list[Any]) -> None:
    columns = {"query_id": ["q", "q"], "doc_id": ["a", "b"], "score": [1.0, 2.0], "system": names}
    pq.write_table(pa.table(columns), tmp_path / "run.parquet")
    assert runs.read(tmp_path / "run.parquet", "1").column("doc_id").to_pylist() == ["a"]
    with pytest.raises(SchemaError, match="none is called 'None'"):
        runs.read(tmp_path / "run.parquet", "None")


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    names = ["query_id", "query_id", "doc_id", "score"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 4, names=names), tmp_path / "run.parquet")
    with pytest.raises(SchemaError, match="two columns are called 'query_id'"):
        runs.read(tmp_path / "run.parquet", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_id,doc_id,score\nq1,d1,2.5\n", "line 1: 1 field, not the 6 .*; a run is such lines .*, or Parquet"),
        (json.dumps({"q1": {"d1": 2.5}}), "line 1: 3 fields, not the 6 .*; a run is such lines .*, or Parquet"),
        (LINE.replace(" ", ","), "line 1: 1 field, not the 6"),
        (LINE + LINE.replace("2.5", "2_5"), "line 2: .* score '2_5' no number"),
        (LINE.replace(" 1 ", " 1_0 "), "line 1: rank '1_0' is no whole number"),
        (LINE.replace(" 1 ", f" 1{'0' * 30} "), "line 1: rank '10+' is no whole number"),
        ("", "ranks no document for any query"),
        (" \n\n", "ranks no document for any query"),
    ],
)
def test_a_text_that_is_no_run_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.txt").write_text(text, encoding="utf-8")
    with pytest.raises(SchemaError, match=message) as caught:
        runs.read(tmp_path / "run.txt", "a")
    assert str(caught.value).startswith(str(tmp_path / "run.txt"))


def test_a_system_that_a_person_names_must_be_in_the_file(tmp_path: Path) -> None:
    """Its scores went by a name of another system before, where the file holds one alone."""
    (tmp_path / "run.txt").write_text(LINE, encoding="utf-8")
    (system,) = {line.split()[5] for line in LINE.splitlines()}
    assert runs.read(tmp_path / "run.txt", "file's name").num_rows == 1
    assert runs.read(tmp_path / "run.txt", system, is_named=True).num_rows == 1
    with pytest.raises(SchemaError, match=f"holds the system {system}, which is not called 'other'"):
        runs.read(tmp_path / "run.txt", "other", is_named=True)
    columns = {"query_id": ["1"], "doc_id": ["2"], "score": [1.5]}
    pq.write_table(pa.table(columns), tmp_path / "run.parquet")
    with pytest.raises(SchemaError, match="has no column system, so no system is called 'other'"):
        runs.read(tmp_path / "run.parquet", "other", is_named=True)
