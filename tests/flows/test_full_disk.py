"""A full disk at every write, link and folder of a publish, re-indexes, a division among shards, and a removal."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import gc, shards, sources
from flows import reindex as reindexing
from pipeline import release_parts
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
