"""A small data artifact of given documents, queries and judgments, and damage done to an artifact on purpose."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact

MakeData = Callable[..., Artifact]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    def make(
        texts: Sequence[str],
        *,
        queries: Mapping[str, str] | None = None,
        splits: Mapping[str, str] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Artifact:
        """Documents d0, d1, … with these texts; each query judged once, in its split (test where none is given)."""
        queries, splits = queries or {}, splits or {}
        documents = pa.table(
            {
                "doc_id": pa.array([f"d{row}" for row in range(len(texts))], pa.string()),
                "title": pa.array([""] * len(texts), pa.string()),
                "text": pa.array(list(texts), pa.string()),
            }
        )
        for name, values in (columns or {}).items():
            position = documents.column_names.index(name) if name in documents.column_names else None
            column = pa.array(list(values))
            if position is None:
                documents = documents.append_column(name, column)
            else:
                documents = documents.set_column(position, name, column)
        tables = {
            "documents": documents,
            "queries": pa.table(
                {
                    "query_id": pa.array(list(queries), pa.string()),
                    "text": pa.array(list(queries.values()), pa.string()),
                }
            ),
            "judgments": pa.table(
                {
                    "query_id": pa.array(list(queries), pa.string()),
                    "doc_id": pa.array(["d0"] * len(queries), pa.string()),
                    "grade": pa.array([1] * len(queries), pa.int64()),
                    "split": pa.array([splits.get(query, "test") for query in queries], pa.string()),
                }
            ),
        }
        key = json.dumps({name: table.to_pylist() for name, table in tables.items()}, default=str)

        def build(staging: artifacts.Staging) -> Mapping[str, Any]:
            for name, table in tables.items():
                # Small row groups, so that reading crosses their borders.
                pq.write_table(table, staging.folder / f"{name}.parquet", row_group_size=700)
            return {}

        mark = hashlib.sha256(key.encode()).hexdigest()
        return artifacts.make(tmp_path, "data", version=1, config={"mark": mark}, inputs={}, build=build)

    return make


@pytest.fixture
def resealed(tmp_path: Path) -> Callable[[Artifact, Callable[[Path], None]], Path]:
    """A copy of an artifact after a change to its files, with a manifest that agrees with the change."""

    def reseal(artifact: Artifact, change: Callable[[Path], None]) -> Path:
        folder = tmp_path / "changed.partial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        shutil.copytree(artifact.path, folder)
        (folder / artifacts.MANIFEST).unlink()
        change(folder)
        return artifacts.seal(folder, dataclasses.replace(artifact.manifest), tmp_path / "changed").path

    return reseal


@pytest.fixture
def embed() -> Callable[[Sequence[str]], np.ndarray]:
    """Unit vectors of 16 dimensions that depend on the text alone."""

    def vectors(texts: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        matrix = np.array([np.random.default_rng(seed).normal(size=16) for seed in seeds], np.float32).reshape(-1, 16)
        return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)

    return vectors
