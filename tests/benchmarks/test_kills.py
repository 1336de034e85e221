"""A thousand SIGKILLs at calls of the file system, over all operations that publish or remove releases."""

from pathlib import Path

import pytest

from tests.flows.test_before import workspace
from tests.flows.test_kills import OPERATIONS, check_kills

__all__ = ["workspace"]  # A fixture.

pytestmark = pytest.mark.benchmark

KILLS = 200
"""Kills of each operation."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_killed_operation_ends_the_same_when_run_again(workspace: Path, tmp_path: Path, operation: str) -> None:
    check_kills(workspace, tmp_path, operation, KILLS)
