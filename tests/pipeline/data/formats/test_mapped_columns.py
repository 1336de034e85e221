"""Values that no column can hold are refused with their line, or with their column in Parquet."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.formats import mapped_columns
from pipeline.errors import SchemaError

COLUMNS = {"doc_id": "id", "text": "text", "kept": "kept"}


def lines(folder: Path, *kept: Any) -> Path:
    file = folder / "documents.jsonl"
    rows = [{"id": str(number), "text": "x", "kept": value} for number, value in enumerate(kept, start=1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ([1, 2, 2**70], "line 3: the kept holds a whole number of more than 64 bits; write all of them as one kind"),
        ([1, "two"], r"line 2: the kept is of another kind than before \("),
        ([[1], 2], r"line 2: the kept is of another kind than before \("),
        (["a", "\ud800"], "line 2: the kept contains a lone surrogate, so it is not valid Unicode"),
        ([["a"], ["b", "\ud800"]], "line 2: the kept contains a lone surrogate"),
        ([{"a": "b"}, {"a": "c"}, {"a": "\ud800"}], "line 3: the kept holds text that is not valid Unicode"),
        ([{"a": 1}, {"\ud800": 1}], "line 2: the kept holds text that is not valid Unicode"),
        ([{}, {}], "the kept holds objects without fields, which no table can keep; leave it out of the columns"),
        ([[{}]], "the kept holds objects without fields"),
        ([{"a": 1, "b": {}}], "the kept holds objects without fields"),
    ],
)
def test_a_kept_value_that_no_column_holds_is_refused_with_its_line(
    kept: list[Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(SchemaError, match=named):
        mapped_columns.read(lines(tmp_path, *kept), COLUMNS)


@pytest.mark.parametrize("kept", [[1, None, 2.5], [[], ["a"]], [None, None], [{"a": 1}, {"b": [1]}], [True, False]])
def test_what_is_read_can_be_written_as_parquet(kept: list[Any], tmp_path: Path) -> None:
    table = mapped_columns.read(lines(tmp_path, *kept), COLUMNS)
    pq.write_table(table, tmp_path / "documents.parquet")
    assert pq.read_table(tmp_path / "documents.parquet")["kept"].to_pylist() == table["kept"].to_pylist()


def test_the_first_wrong_value_is_named_wherever_it_stands(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(20):
        kept: list[Any] = list(range(rng.randint(2, 40)))
        wrong = sorted(rng.sample(range(1, len(kept)), min(2, len(kept) - 1)))
        for index in wrong:
            kept[index] = 2**70
        with pytest.raises(SchemaError, match=rf"line {wrong[0] + 1}: "):
            mapped_columns.read(lines(tmp_path, *kept), COLUMNS)


@pytest.mark.parametrize("in_structs", [False, True])
def test_lists_and_structs_of_text_that_is_not_utf8_are_refused(in_structs: bool, tmp_path: Path) -> None:
    offsets = pa.array([0, 2, 4], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ok\xff\xfe")])
    entries = pa.StructArray.from_arrays([texts], names=["text"]) if in_structs else texts
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), entries)
    file = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"query": ["q"], "positive": lists, "negative": [["n"]]}), file)
    path = "positive.text" if in_structs else "positive"
    with pytest.raises(SchemaError, match=r"lists\.parquet: column 'positive' holds text that is not UTF-8"):
        mapped_columns.read(file, {"query": "query", "positive": path, "negative": "negative"})
