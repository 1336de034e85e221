"""Tables of others keep their contract: whoever reads one by `schema.read` gets texts that are texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import notebook
from pipeline import schema
from pipeline.data.formats import parquet_reader
from pipeline.errors import SchemaError
from serving.rollout import comparison


def not_utf8(kind: pa.DataType) -> pa.Array:
    """Two texts, "q1" and two bytes that are no text."""
    offsets = pa.array([0, 2, 4], pa.int64() if kind == pa.large_string() else pa.int32()).buffers()[1]
    return pa.Array.from_buffers(kind, 2, [None, offsets, pa.py_buffer(b"q1\xff\xfe")])


def _of_a_report(folder: Path) -> Any:
    (folder / "a.run").write_text("q1 Q0 d1 1 1.0 a\n", encoding="utf-8")
    return notebook.judge(folder / "a.run", folder / "judgments.parquet", ["ndcg@10"])


READERS: dict[str, Callable[[Path], Any]] = {
    "schema": lambda folder: schema.read(folder / "judgments.parquet", "judgments"),
    "data": lambda folder: parquet_reader.read(folder / "judgments.parquet", "judgments"),
    "notebook": _of_a_report,
    "service": comparison.read_grades,
}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_text_that_is_not_utf8_is_refused_by_each_reader(
    read: Callable[[Path], Any], kind: pa.DataType, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"query_id": ["q1"], "text": ["knife"]}), tmp_path / "queries.parquet")
    table = pa.table({"query_id": not_utf8(kind), "doc_id": ["d1", "d2"], "grade": [1, 0]})
    pq.write_table(table, tmp_path / "judgments.parquet")
    with pytest.raises(SchemaError, match=r"judgments\.parquet: column 'query_id' holds text that is not UTF-8"):
        read(tmp_path)
