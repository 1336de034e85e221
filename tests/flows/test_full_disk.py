"""A full disk at every write, link and folder of a publish, re-indexes, a division among shards, and a removal."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from safetensors.torch import save_file

from flows import gc, shards, sources
from flows import reindex as reindexing
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.releases import Releases
from tests.flows import full_disk, test_kills
from tests.flows.full_disk import SmallDisk, small_disk
from tests.flows.test_before import workspace

__all__ = ["small_disk", "workspace"]  # Fixtures.

POINTS = 4
"""Amounts of free blocks, and of free inodes, that are tried for each operation; the benchmark tries more."""

OPERATIONS = ("publish", "segment", "merge", "divide")

CALLS = 6
"""Calls of the file system that are tried for each operation; the benchmark tries all."""


def publish(folder: Path) -> None:
    registry = Releases(folder)
    release = registry.open(registry.ids()[0])
    parts = {name: release_parts.part(release, name) for name in release.manifest.inputs}
    registry.publish(parts, metrics={}, config={**release.manifest.config, "name": "again"})


def prepared(workspace: Path, folder: Path, operation: str) -> Callable[[Path], object]:
    """Brings a workspace to the state before an operation, and returns the operation."""
    source = test_kills.prepare(workspace, folder, operation)
    if operation == "publish":
        return publish
    if operation == "divide":
        return lambda changed: shards.reindex(sources.named(str(source)), changed, 2)
    return lambda changed: reindexing.reindex([str(source)], changed)


def check_full_disk(disk: SmallDisk, workspace: Path, folder: Path, operation: str, points: int) -> None:
    run = prepared(workspace, folder, operation)
    assert full_disk.check(disk, workspace, run, points) >= min(points, 4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_call_that_finds_the_disk_full_leaves_nothing_half_published(
    workspace: Path, tmp_path: Path, operation: str
) -> None:
    full_disk.check_calls(workspace, tmp_path / "copy", prepared(workspace, tmp_path, operation), CALLS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_leaves_nothing_half_published_and_the_next_run_ends_the_same(
    small_disk: SmallDisk, workspace: Path, tmp_path: Path, operation: str
) -> None:
    check_full_disk(small_disk, workspace, tmp_path, operation, POINTS)


def test_gc_makes_room_on_a_disk_without_a_free_block_or_inode(
    small_disk: SmallDisk, workspace: Path, tmp_path: Path
) -> None:
    prepared(workspace, tmp_path, "merge")
    folder = small_disk.path / "workspace"
    shutil.copytree(workspace, folder)
    with small_disk.filled(blocks=0, inodes=0):
        assert gc.gc(folder, keep=1, act=True)["items"]
        for release in Releases(folder).ids():
            release_parts.verify(Releases(folder).path(release))
    assert len(Releases(folder).ids()) == 2


def model_weights(folder: Path) -> None:
    save_file({"weights": torch.zeros(100_000)}, folder / "model.safetensors")


def tokenizer(folder: Path) -> None:
    words = {f"word{number}": number for number in range(20_000)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="word0")).save(str(folder / "tokenizer.json"))


def semantic_index(folder: Path) -> None:
    index = faiss.IndexFlatL2(16)
    index.add(np.zeros((20_000, 16), np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))


def table(folder: Path) -> None:
    pq.write_table(pa.table({"value": np.random.default_rng(0).random(100_000)}), folder / "table.parquet")


def array(folder: Path) -> None:
    np.save(folder / "array.npy", np.zeros(100_000))


@pytest.mark.parametrize("write", [model_weights, tokenizer, semantic_index, table, array])
def test_a_full_disk_is_one_error_whatever_each_library_says(
    small_disk: SmallDisk, write: Callable[[Path], None]
) -> None:
    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        write(staging.folder)
        return {}

    def make() -> Artifact:
        return artifacts.make(small_disk.path, "model", version=1, config={}, inputs={}, build=build)

    with small_disk.filled(blocks=16):
        error = full_disk.refusal(make)
        assert isinstance(error, ArtifactError)
        full_disk.assert_refused_for_want_of_room(error)
        assert not list(small_disk.path.rglob("*.partial"))
    assert make().is_new
