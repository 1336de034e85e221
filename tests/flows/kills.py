"""Runs one publishing operation in a process that is killed at its n-th call of the file system."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from flows import gc, shards, sources
from flows import reindex as reindexing
from pipeline import release_parts
from pipeline.errors import ConflictError
from pipeline.releases import Releases
from tests import forked

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "os.truncate")
"""Audit events of the calls that are counted, besides opening for writing."""


def run(workspace: Path, operation: str, source: Path, killed_at: int = 0) -> tuple[int, int]:
    """Runs the operation; returns its exit status and the number of calls, 0 when it was killed."""
    log = workspace.with_name(f"{workspace.name}-{operation}.log")
    ended = forked.run(_operate, workspace, operation, source, killed_at, log=log)
    if ended.exit_code not in (0, -signal.SIGKILL):
        raise AssertionError(f"{operation}, killed at {killed_at}: {ended.output[-2000:]}")
    return ended.exit_code, ended.returned if ended.exit_code == 0 else 0


def _operate(workspace: Path, operation: str, source: Path, killed_at: int) -> int:
    """Does the operation, and is killed at that call within the workspace; returns the number of calls."""
    calls = 0

    def counted(name: str, args: tuple[Any, ...]) -> None:
        nonlocal calls
        writes = name == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or name in CHANGES) and str(workspace) in str(args[0]) + str(args[1] if len(args) > 1 else ""):
            calls += 1
            if calls == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    registry = Releases(workspace)
    first = registry.ids()[0]
    operations = {
        "publish": lambda: _publish(registry, first),
        "promote": lambda: registry.promote(first, reason="test"),
        "rollback": lambda: _roll_back(registry),
        **dict.fromkeys(("reindex", "segment", "merge"), lambda: reindexing.reindex([str(source)], workspace)),
        "divide": lambda: shards.reindex(sources.named(str(source)), workspace, 2),
        "gc": lambda: gc.gc(workspace, keep=1, act=True),
    }
    sys.addaudithook(counted)
    operations[operation]()
    return calls


def _publish(registry: Releases, first: str) -> None:
    release = registry.open(first)
    parts = {name: release_parts.part(release, name) for name in release.manifest.inputs}
    registry.publish(parts, metrics={}, config={**release.manifest.config, "name": "again"})


def _roll_back(registry: Releases) -> None:
    try:
        registry.rollback(reason="test", expected=2)
    except ConflictError:
        pointer = registry.live()
        assert pointer is not None
        assert pointer.generation == 3  # The killed run had moved the pointer already.


def state(workspace: Path) -> tuple[object, ...]:
    """Everything that a finished operation leaves, without times: releases, pointer and history."""
    registry = Releases(workspace)
    for name in registry.ids():
        release_parts.verify(registry.path(name))
    pointer = registry.live()
    assert pointer is not None
    history, unreadable = registry.pointer_file.history()
    generations = [item.generation for item in history]
    assert unreadable == 0
    assert len(set(generations)) == len(generations)
    return sorted(registry.ids()), pointer.release, pointer.generation, pointer.earlier
