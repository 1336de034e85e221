"""The checks of contents find what digests cannot: files that are what was written and do not fit together."""

import dataclasses
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import checks, inventory, semantic_build, vectors
from index.ann import FILE
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from tests.index.test_segments import Documents, data_of, indexed, random_document, unit_vectors

CONFIG = IndexConfig(flat_below=1)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Artifact]:
    """All parts over 51 documents, each of two segments; a tombstone in each first one. `vectors` is among them."""
    corpus: Documents = {f"d{number}": random_document(random.Random(number)) for number in range(50)}
    corpus["anchor"] = {"title": "garden", "text": "lamp", "size": None}
    parts: dict[str, Artifact] = {}
    for text in ("first", "second"):
        corpus["d7"] = {"title": text, "text": "words", "size": 3}
        earlier = [parts["vectors"]] if parts else []
        embedded = vectors.make(
            tmp_path, vectors.DocumentEncoder("encoder", unit_vectors), data=data_of(tmp_path, corpus), previous=earlier
        )
        index = semantic_build.make(tmp_path, CONFIG, vectors=embedded, previous=parts.get("index"))
        parts = {**indexed(tmp_path, corpus, parts), "index": index, "vectors": embedded}
    return parts


def problems(parts: dict[str, Artifact]) -> list[str]:
    searchable = {name: part for name, part in parts.items() if name != "vectors"}
    return list(checks.problems(searchable, parts["vectors"]))


def test_sound_parts_have_no_problem(parts: dict[str, Artifact], tmp_path: Path) -> None:
    assert problems(parts) == []
    for name in ("lexical", "documents", "index", "vectors"):
        listed = inventory.segments_of(parts[name])
        assert [(segment.documents, segment.live) for segment in listed] == [(51, 50), (1, 1)]
        assert all(segment.bytes == sum(path.stat().st_size for path in segment.files) for segment in listed)
    corpus = data_of(tmp_path, {"d0": random_document(random.Random(0))})
    alone = vectors.make(tmp_path, vectors.DocumentEncoder("encoder", unit_vectors), data=corpus)
    assert [segment.live for segment in inventory.segments_of(alone)] == [1]


def array(name: str, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    """Changes an array of the largest segment."""

    def changed(folder: Path) -> None:
        path = max(folder.rglob(name), key=lambda path: path.stat().st_size)
        values = np.load(path)
        change(values)
        path.unlink()  # Another artifact may share the file.
        np.save(path, values)

    return changed


def first_more(values: np.ndarray) -> None:
    values[0] += 1


def swap(values: np.ndarray) -> None:
    values[[0, 1]] = values[[1, 0]]


def not_a_number(values: np.ndarray) -> None:
    values[3] = np.nan


def last_term_first(folder: Path) -> None:
    path = max(folder.rglob("terms.json"), key=lambda path: path.stat().st_size)
    terms = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    path.write_text(json.dumps(terms[::-1]), encoding="utf-8")


def ids(rename: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        for name in ("ids.parquet", "rows.parquet"):
            if (path := folder / name).exists():
                table = pq.read_table(path)
                number = table.column_names.index("doc_id")
                names = pa.array(rename(table.column("doc_id").to_pylist()))
                pq.write_table(table.set_column(number, "doc_id", names), path)

    return changed


def rename_document(folder: Path) -> None:
    path = max(folder.rglob("documents.sqlite"), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE documents SET doc_id = 'other' WHERE row = 0")
    connection.close()


def zero_vector(folder: Path) -> None:
    path = min(folder.rglob(FILE), key=lambda path: path.stat().st_size)  # The new segment is exact.
    path.unlink()
    ann = faiss.IndexFlatIP(8)
    ann.add(np.zeros((1, 8), np.float32))
    faiss.write_index(ann, str(path))


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("lexical", array("counts.npy", first_more), "do not add up"),
    ("lexical", array("lengths.npy", first_more), "do not add up"),
    ("lexical", array("holders.npy", first_more), "living documents"),
    ("lexical", array("documents.npy", lambda values: values.fill(99)), "beyond"),
    ("lexical", array("digests.npy", swap), "other texts"),
    ("lexical", last_term_first, "do not ascend"),
    ("lexical", ids(lambda names: [names[1], names[0], *names[2:]]), "order"),
    ("documents", rename_document, "order"),
    ("documents", array("rows.npy", swap), "order"),
    ("index", ids(lambda names: [*names[:-1], "other"]), "documents"),
    ("index", array("digests.npy", swap), "other texts"),
    ("index", zero_vector, "zero, or not finite"),
    ("vectors", array("vectors.npy", not_a_number), "length"),
    ("vectors", array("digests.npy", swap), "segments beside it"),
    ("vectors", array("rows.npy", swap), "segments beside it"),
    ("vectors", ids(lambda names: names[::-1]), "documents"),
]


@pytest.mark.parametrize(("kind", "change", "words"), DAMAGE, ids=[f"{kind}-{words}" for kind, _, words in DAMAGE])
def test_contents_that_do_not_fit_are_named(
    kind: str, change: Callable[[Path], None], words: str, parts: dict[str, Artifact], resealed: Callable[..., Path]
) -> None:
    changed = artifacts.load(resealed(parts[kind], change), kind)
    listed = problems({**parts, kind: changed})
    assert any(str(changed.path) in problem or kind in problem for problem in listed), listed
    assert any(words in problem for problem in listed), listed


def test_a_doc_id_that_repeats_is_named(parts: dict[str, Artifact], resealed: Callable[..., Any]) -> None:
    repeat = ids(lambda names: [names[0], names[0], *names[2:]])
    changed = artifacts.load(resealed(parts["lexical"], repeat), "lexical")
    alone = {"lexical": changed, "vectors": dataclasses.replace(parts["vectors"])}
    assert any("two rows have one doc_id" in problem for problem in problems(alone))
