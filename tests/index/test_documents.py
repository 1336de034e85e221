import math
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index import document_reader, document_store, documents
from index.document_store import Document, DocumentStore
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, MissingError, SchemaError


def test_chosen_rows_are_those_of_the_whole_file(
    tmp_path: Path, make_data: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_reader, "BATCH", 4)
    data = make_data([f"text {row}" for row in range(13)])
    every = list(document_reader.rows(data))
    for chosen in ([], [0], [3], [4], [12], [0, 3, 4, 8], [2, 7, 11], range(13)):
        read = list(document_reader.rows(data, chosen=np.array(chosen, np.int64)))
        assert read == [every[row] for row in chosen]


def test_every_document_comes_back_by_row(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    texts = [f"text {row} 中文 \x00 \U0001f34f" for row in range(2501)]
    data = make_data(texts, columns={"title": [f"title {row}" if row % 3 else "" for row in range(2501)]})
    artifact = documents.make(tmp_path, data=data)
    store = DocumentStore.load(artifact.path)
    assert len(store) == artifact.metrics["documents"] == 2501
    expected = [Document(f"d{row}", f"title {row}" if row % 3 else "", text) for row, text in enumerate(texts)]
    assert store.get_many(range(2501)) == expected
    assert store.get_many([7, 2500, 7]) == [expected[7], expected[2500], expected[7]]
    joined = [f"{document.title}\n{document.text}" if document.title else document.text for document in expected]
    assert list(documents.texts(data)) == [(f"d{row}", text) for row, text in enumerate(joined)]
    store.close()


def test_other_columns_are_kept_where_they_have_a_value(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    columns = {
        "upvotes": [3, None],
        "price": [1.5, math.nan],
        "updated_at": [datetime(2026, 1, 2, tzinfo=UTC), None],
        "tags": [["新", "b"], None],
    }
    store = DocumentStore.load(documents.make(tmp_path, data=make_data(["a", "b"], columns=columns)).path)
    assert store.get(0).extra == {
        "upvotes": 3,
        "price": 1.5,
        "updated_at": "2026-01-02 00:00:00+00:00",
        "tags": ["新", "b"],
    }
    assert store.get(1).extra == {}


def test_what_is_not_there_is_named(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    store = DocumentStore.load(documents.make(tmp_path, data=make_data(["a", "b"])).path)
    for row in (2, -1, 2**70):
        with pytest.raises(MissingError, match=f"no document in row {row}"):
            store.get(row)


def test_threads_read_side_by_side(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    store = DocumentStore.load(documents.make(tmp_path, data=make_data([f"text {row}" for row in range(300)])).path)
    rows = [(7 * step) % 300 for step in range(3000)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda row: store.get(row).text, rows))
    assert texts == [f"text {row}" for row in rows]


def test_a_slow_filter_holds_up_no_document_and_is_read_once(
    tmp_path: Path, make_data: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data([f"text {row}" for row in range(6)], columns={"kind": ["a", "b"] * 3})
    store = DocumentStore.load(documents.make(tmp_path, data=data).path)
    real, began, go, requests = store._segments[0].fields.all, threading.Event(), threading.Event(), []

    def slow(query: str, *values: int | str) -> Any:
        requests.append(values)
        began.set()
        assert go.wait(60)
        return real(query, *values)

    monkeypatch.setattr(store._segments[0].fields, "all", slow)
    with ThreadPoolExecutor(4) as pool:
        filters = [pool.submit(store.rows_where, {"kind": ["b"]}) for _ in range(3)]
        assert began.wait(60)
        assert store.get(5).text == "text 5"
        go.set()
        assert [future.result().tolist() for future in filters] == [[1, 3, 5]] * 3
    assert requests == [("kind", "b")]
    # What is known already does not wait for what is read.
    began.clear()
    go.clear()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(store.rows_where, {"kind": ["a"]})
        assert began.wait(60)
        assert store.rows_where({"kind": ["b"]}).tolist() == [1, 3, 5]
        go.set()
        assert other.result().tolist() == [0, 2, 4]


def test_filters_that_nothing_passes_take_no_memory(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    store = DocumentStore.load(documents.make(tmp_path, data=make_data(["a", "b"], columns={"kind": ["x", "y"]})).path)
    tracemalloc.start()
    for number in range(30):
        assert store.rows_where({"kind": [f"{number}" * 500_000, f"{number}"]}).tolist() == []
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000


def test_two_documents_of_one_id_and_none_at_all_are_refused(
    tmp_path: Path, make_data: Callable[..., Artifact]
) -> None:
    with pytest.raises(SchemaError, match="same doc_id"):
        documents.make(tmp_path, data=make_data(["a", "b"], columns={"doc_id": ["x", "x"]}))
    with pytest.raises(SchemaError, match="no document"):
        documents.make(tmp_path, data=make_data([]))


def test_a_damaged_store_is_refused_by_name(
    tmp_path: Path, make_data: Callable[..., Artifact], resealed: Callable[..., Path]
) -> None:
    artifact = documents.make(tmp_path, data=make_data(["a", "b"]))
    path = artifact.file(document_store.FILE)
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"documents\.sqlite"):
        DocumentStore.load(artifact.path)
    path.write_bytes(intact)

    def no_database(folder: Path) -> None:
        (folder / document_store.FILE).write_bytes(b"not a database" * 100)

    with pytest.raises(ArtifactError, match=r"documents\.sqlite.*not a readable document store"):
        DocumentStore.load(resealed(artifact, no_database))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from index import {module}
from pipeline import artifacts
from pipeline.errors import ArtifactError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
data = artifacts.load(Path(sys.argv[2]))
{prepare}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    {make}
except ArtifactError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "prepare", "make"),
    [
        ("documents", "", "documents.make(Path(sys.argv[1]), data=data)"),
        (
            "vectors",
            "import numpy as np; embed = lambda texts: np.eye(64)[:1].repeat(len(texts), 0)",
            "vectors.make(Path(sys.argv[1]), vectors.DocumentEncoder('e', embed), data=data)",
        ),
        (
            "semantic_build, vectors",
            "import numpy as np; from pipeline.config import IndexConfig\n"
            "embed = lambda texts: np.eye(64)[:1].repeat(len(texts), 0)\n"
            "made = vectors.make(Path(sys.argv[1]), vectors.DocumentEncoder('e', embed), data=data)",
            "semantic_build.make(Path(sys.argv[1]), IndexConfig(), vectors=made)",
        ),
        (
            "lexical_build",
            "from pipeline.config import IndexConfig",
            "lexical_build.make(Path(sys.argv[1]), IndexConfig(), data=data)",
        ),
    ],
)
def test_a_full_disk_is_told_and_nothing_half_written_is_kept(
    module: str, prepare: str, make: str, tmp_path: Path, make_data: Callable[..., Artifact]
) -> None:
    data = make_data([f"text of document {row} " * 5 for row in range(3000)])
    program = FULL_DISK.format(module=module, prepare=prepare, make=make)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(data.path)], capture_output=True, text=True, check=True
    )
    assert "could not be written" in done.stdout, done.stdout + done.stderr
    kinds = {"semantic_build, vectors": "index", "lexical_build": "lexical"}
    kind = kinds.get(module, module)
    assert [path for path in (tmp_path / "artifacts" / kind).iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(9, 2), pa.list_(pa.float32())],
    ids=str,
)
def test_numbers_are_compared_by_value_whatever_their_type(
    kind: pa.DataType, tmp_path: Path, make_data: Callable[..., Artifact]
) -> None:
    """Seed 7."""
    generator = random.Random(7)
    listed = pa.types.is_list(kind)
    scalar = kind.value_type if listed else kind
    integral = pa.types.is_integer(scalar)
    numbers = [generator.randint(-100, 100) if integral else generator.randint(-999, 999) / 100 for _ in range(40)]
    numbers += [5, 0, -4] if integral else [5.0, 4.1, 0.0, -0.5]
    values = [Decimal(f"{number:.2f}") if pa.types.is_decimal(scalar) else number for number in numbers]
    column = pa.array([[value] for value in values] if listed else values, kind)
    store = DocumentStore.load(
        documents.make(tmp_path, data=make_data(["x"] * len(numbers), columns={"n": column})).path
    )
    for number in numbers:
        rows = store.rows_where({"n": [number]}).tolist()
        assert rows == [row for row, other in enumerate(numbers) if other == number]
    if pa.types.is_decimal(scalar) or integral:
        assert store.rows_where({"n": [5]}).tolist() == store.rows_where({"n": ["5"]}).tolist() != []


def test_whole_numbers_of_any_length_are_compared_exactly(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    numbers = [2**64 - 1, 2**64, 2**64 + 1, 2**53, 2**53 + 1]
    column = pa.array([Decimal(number) for number in numbers], pa.decimal128(20, 0))
    data = make_data(["x"] * len(numbers), columns={"n": column})
    store = DocumentStore.load(documents.make(tmp_path, data=data).path)
    for row, number in enumerate(numbers):
        assert store.rows_where({"n": [number]}).tolist() == store.rows_where({"n": [str(number)]}).tolist() == [row]


def test_stats_count_empty_and_repeated_documents(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    artifact = documents.make(tmp_path, data=make_data(["a", "", " \n", "a", "b", "a"]))
    stats = DocumentStore.load(artifact.path).stats()
    assert stats == document_store.CorpusStats(documents=6, empty=2, duplicates=2)
    assert (artifact.metrics["empty"], artifact.metrics["duplicates"]) == (2, 2)
