"""SIGKILL at calls of the file system: the second run ends as the first one would have."""

import random
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

from flows import reindex as reindexing
from pipeline import artifacts, release_parts
from pipeline.releases import Releases
from tests.flows import kills
from tests.flows.test_before import registry_documents, workspace

__all__ = ["workspace"]  # A fixture.

OPERATIONS = ("publish", "promote", "rollback", "reindex", "segment", "merge", "divide", "gc")
SEGMENTS_BEFORE = {"segment": 1, "merge": 2}
"""Operation that re-indexes over segments → their number before it."""


def prepare(workspace: Path, folder: Path, operation: str) -> Path:
    """Brings a workspace to the state before an operation; returns the folder of documents that it then indexes."""
    source = folder / "documents"
    source.mkdir()
    frame = pd.DataFrame(registry_documents(Releases(workspace)))
    for number in range(SEGMENTS_BEFORE.get(operation, 0)):
        frame.loc[number + 2, "text"] = "a samovar for the kitchen"
        frame.to_parquet(source / "documents.parquet", index=False)
        reindexing.reindex([str(source)], workspace)
    frame.loc[1, "text"] = "a balalaika for the garden"
    frame.to_parquet(source / "documents.parquet", index=False)
    return source


def check_kills(workspace: Path, folder: Path, operation: str, count: int) -> None:
    """Kills the operation at `count` calls, drawn without repetition where there are enough (seed 17)."""
    source = prepare(workspace, folder, operation)
    complete = folder / "complete"
    shutil.copytree(workspace, complete)
    _, calls = kills.run(complete, operation, source)
    expected = kills.state(complete)
    if operation in SEGMENTS_BEFORE:
        live = Releases(complete).open()
        parts = [release_parts.part(live, name) for name in ("lexical", "documents", "index")]
        embedded = artifacts.input_of(complete, parts.pop(), "vectors")
        assert embedded is not None
        for part in (*parts, embedded):
            assert (part.metrics["segments"], part.metrics["rewritten"]) == (2, SEGMENTS_BEFORE[operation])
    generator = random.Random(17)
    points = generator.sample(range(1, calls + 1), min(count, calls))
    points += [generator.randint(1, calls) for _ in range(count - len(points))]
    for point in points:
        killed = folder / "killed"
        shutil.copytree(workspace, killed)
        status, _ = kills.run(killed, operation, source, point)
        assert status == -signal.SIGKILL, f"{operation} was not killed at call {point} of {calls}"
        release_parts.verify(Releases(killed).open().path)  # What is live can be served at once.
        assert kills.run(killed, operation, source)[0] == 0
        assert kills.state(killed) == expected, f"{operation} killed at call {point} of {calls}"
        shutil.rmtree(killed)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_killed_operation_ends_the_same_when_run_again(workspace: Path, tmp_path: Path, operation: str) -> None:
    check_kills(workspace, tmp_path, operation, 2 if operation in (*SEGMENTS_BEFORE, "divide") else 4)
