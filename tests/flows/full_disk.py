"""A small disk of its own that is really full, and the operations that meet it."""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RelevanceError
from tests.flows import kills

INODES = 6000


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs. Each file, folder and further name of a file takes an inode, so making one fails when they run out."""

    path: Path

    @contextmanager
    def filled(self, *, blocks: int | None = None, inodes: int | None = None) -> Iterator[None]:
        """Leaves a number of blocks of 4 KiB, or of inodes, free inside the `with` block."""
        ballast = self.path / "ballast"
        ballast.mkdir()
        try:
            if blocks is not None:
                with (ballast / "bytes").open("wb") as file:
                    stats = os.statvfs(self.path)
                    os.posix_fallocate(file.fileno(), 0, (stats.f_bfree - blocks) * stats.f_bsize)
            if inodes is not None:
                first = ballast / "0"
                first.touch()
                for number in range(1, os.statvfs(self.path).f_ffree - inodes + 1):
                    os.link(first, ballast / str(number))
            yield
        finally:
            shutil.rmtree(ballast)

    def used(self) -> tuple[int, int]:
        """Blocks and inodes in use."""
        stats = os.statvfs(self.path)
        return stats.f_blocks - stats.f_bfree, stats.f_files - stats.f_ffree


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size=48m,nr_inodes={INODES}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system of its own")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def refusal(operation: Callable[[], object]) -> Exception | None:
    """The error with which an operation ends because the disk is full; None where it ends well."""
    try:
        operation()
    except (RelevanceError, OSError) as error:
        return error
    return None


def assert_refused_for_want_of_room(error: Exception) -> None:
    assert os.strerror(errno.ENOSPC) in str(error), error
    assert "delete" not in str(error)


def assert_untouched(workspace: Path, at_first: tuple[object, ...]) -> None:
    """Every release is whole, what was live is live, and no half of an artifact is left."""
    now = kills.state(workspace)
    assert now[1:] == at_first[1:]
    assert not list((workspace / "artifacts").rglob("*.partial"))


@contextmanager
def failing_call(number: int) -> Iterator[list[str]]:
    """Lets the n-th call that makes, links or renames an entry of a folder find the disk full; 0 lets all pass.

    Yields the names of the calls so far.
    """
    calls: list[str] = []

    def failing(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def called(*given: Any, **named: Any) -> None:
            calls.append(name)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given[0]))
            function(*given, **named)

        return called

    with pytest.MonkeyPatch.context() as patched:
        for name in ("rename", "replace", "link", "mkdir"):
            patched.setattr(os, name, failing(name, getattr(os, name)))
        yield calls


def copied(before: Path, workspace: Path) -> tuple[object, ...]:
    """Puts a copy of one workspace, with its hard links, in the place of another; returns its state."""
    shutil.rmtree(workspace, ignore_errors=True)
    subprocess.run(["cp", "-a", str(before), str(workspace)], check=True)
    return kills.state(workspace)


def check_calls(before: Path, workspace: Path, operation: Callable[[Path], object], count: int) -> None:
    """Runs an operation whose n-th call of the file system finds the disk full, for `count` n drawn by seed 19.

    After a refusal the workspace serves what it served before, and the next run ends as the first would have.

    Args:
        before: the workspace before the operation.
        workspace: the folder to put copies of `before` into.
    """
    at_first = copied(before, workspace)
    with failing_call(0) as calls:
        operation(workspace)
    expected = kills.state(workspace)
    assert {"rename", "replace", "link", "mkdir"} == set(calls)
    for number in random.Random(19).sample(range(1, len(calls) + 1), min(count, len(calls))):
        copied(before, workspace)
        with failing_call(number) as calls:
            error = refusal(lambda: operation(workspace))
        if error is not None:
            assert_refused_for_want_of_room(error)
            assert_untouched(workspace, at_first)
        operation(workspace)
        assert kills.state(workspace) == expected, f"call {number}, {calls[-1]}"


def check(disk: SmallDisk, before: Path, operation: Callable[[Path], object], points: int) -> int:
    """Runs an operation with ever more free blocks, then with ever more free inodes; returns the number of refusals.

    After a refusal the workspace serves what it served before, and the next run ends as the first would have.

    Args:
        before: the workspace before the operation, outside the disk.
        points: numbers of free blocks, and of free inodes, that are tried: spread evenly, all where there are fewer.
    """
    workspace = disk.path / "workspace"

    def fresh() -> tuple[object, ...]:
        return copied(before, workspace)

    at_first = fresh()
    empty = disk.used()
    operation(workspace)
    expected = kills.state(workspace)
    needed = [after - start for after, start in zip(disk.used(), empty, strict=True)]
    count = 0
    for kind, most in zip(("blocks", "inodes"), needed, strict=True):
        for free in sorted({round(number * most / points) for number in range(points)}):
            fresh()
            with disk.filled(**{kind: free}):
                error = refusal(lambda: operation(workspace))
                if error is not None:
                    count += 1
                    assert_refused_for_want_of_room(error)
                    assert_untouched(workspace, at_first)
            operation(workspace)
            assert kills.state(workspace) == expected, f"{free} {kind} free"
    return count
