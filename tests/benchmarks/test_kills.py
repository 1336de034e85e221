"""A thousand SIGKILLs, and a disk that is full from each point on, in operations that publish or remove releases."""

from pathlib import Path

import pytest

from tests.flows.full_disk import SmallDisk, check_calls, small_disk
from tests.flows.test_before import workspace
from tests.flows.test_full_disk import OPERATIONS as PUBLISHING
from tests.flows.test_full_disk import check_full_disk, prepared
from tests.flows.test_kills import OPERATIONS, check_kills

__all__ = ["small_disk", "workspace"]  # Fixtures.

pytestmark = pytest.mark.benchmark

KILLS = 200
"""Kills of each operation."""
POINTS = 100
"""Amounts of free blocks, and of free inodes, for each operation; there are fewer of most."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_killed_operation_ends_the_same_when_run_again(workspace: Path, tmp_path: Path, operation: str) -> None:
    check_kills(workspace, tmp_path, operation, KILLS)


@pytest.mark.parametrize("operation", PUBLISHING)
def test_a_disk_that_is_full_at_each_point(
    small_disk: SmallDisk, workspace: Path, tmp_path: Path, operation: str
) -> None:
    check_full_disk(small_disk, workspace, tmp_path, operation, POINTS)


@pytest.mark.parametrize("operation", PUBLISHING)
def test_every_call_that_finds_the_disk_full(workspace: Path, tmp_path: Path, operation: str) -> None:
    check_calls(workspace, tmp_path / "copy", prepared(workspace, tmp_path, operation), 1000)
