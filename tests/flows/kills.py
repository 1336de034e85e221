"""Runs one publishing operation in a process that is killed at its n-th call of the file system."""

import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, signal, sys
from pathlib import Path
from flows import gc
from flows import reindex as reindexing
from flows import shards, sources
from pipeline import artifacts, release_parts, releases
from pipeline.errors import ConflictError
from pipeline.releases import Releases

workspace, operation, source, killed_at = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
registry = Releases(workspace)
first, second = registry.ids()[:2]
calls = 0

def counted(name, args):
    global calls
    writes = name == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or name in ("os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "os.truncate"):
        if str(workspace) in str(args[0]) + str(args[1] if len(args) > 1 else ""):
            calls += 1
            if calls == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

def publish():
    release = registry.open(first)
    parts = {name: release_parts.part(release, name) for name in release.manifest.inputs}
    registry.publish(parts, metrics={}, config={**release.manifest.config, "name": "again"})

def rollback():
    try:
        registry.rollback(reason="test", expected=2)
    except ConflictError:
        assert registry.live().generation == 3  # The killed run had moved the pointer already.

operations = {
    "publish": publish,
    "promote": lambda: registry.promote(first, reason="test"),
    "rollback": rollback,
    **dict.fromkeys(("reindex", "segment", "merge"), lambda: reindexing.reindex([source], workspace)),
    "divide": lambda: shards.reindex(sources.named(source), workspace, 2),
    "gc": lambda: gc.gc(workspace, keep=1, act=True),
}
sys.addaudithook(counted)
operations[operation]()
print(calls)
"""


def run(workspace: Path, operation: str, source: Path, killed_at: int = 0) -> tuple[int, int]:
    """Runs the operation; returns its exit status and the number of calls, 0 when it was killed."""
    command = [sys.executable, "-c", SCRIPT, str(workspace), operation, str(source), str(killed_at)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(f"{operation}, killed at {killed_at}: {done.stderr[-2000:]}")
    return done.returncode, int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def state(workspace: Path) -> tuple[object, ...]:
    """Everything that a finished operation leaves, without times: releases, pointer and history."""
    from pipeline import release_parts
    from pipeline.releases import Releases

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
