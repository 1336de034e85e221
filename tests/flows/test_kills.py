"""SIGKILL at calls of the file system: the second run ends as the first one would have."""

import random
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.flows import kills
from tests.flows.test_before import registry_documents, workspace

__all__ = ["workspace"]  # A fixture.

OPERATIONS = ("publish", "promote", "rollback", "reindex", "gc")


def check_kills(workspace: Path, folder: Path, operation: str, count: int) -> None:
    """Kills the operation at `count` calls, drawn without repetition where there are enough (seed 17)."""
    from pipeline.releases import Releases

    source = folder / "documents"
    source.mkdir()
    frame = pd.DataFrame(registry_documents(Releases(workspace)))
    frame.loc[1, "text"] = "a balalaika for the garden"
    frame.to_parquet(source / "documents.parquet", index=False)
    complete = folder / "complete"
    shutil.copytree(workspace, complete)
    _, calls = kills.run(complete, operation, source)
    expected = kills.state(complete)
    generator = random.Random(17)
    points = generator.sample(range(1, calls + 1), min(count, calls))
    points += [generator.randint(1, calls) for _ in range(count - len(points))]
    for point in points:
        killed = folder / "killed"
        shutil.copytree(workspace, killed)
        status, _ = kills.run(killed, operation, source, point)
        assert status == -signal.SIGKILL, f"{operation} was not killed at call {point} of {calls}"
        assert kills.run(killed, operation, source)[0] == 0
        assert kills.state(killed) == expected, f"{operation} killed at call {point} of {calls}"
        shutil.rmtree(killed)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_killed_operation_ends_the_same_when_run_again(workspace: Path, tmp_path: Path, operation: str) -> None:
    check_kills(workspace, tmp_path, operation, 4)
