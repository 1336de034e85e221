"""Locks on files of a workspace, which die with the process that holds them."""

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import regular_files

USED_AT_ONCE = 4
"""Number of workspaces that one process marks as used, the latest ones."""
_LOCK = re.compile(r"\..+\.lock")
_uses: dict[Path, int] = {}
"""Absolute path of a workspace's use file → the open file that holds this process's lock."""

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file beside `path`; a second process waits. The lock dies with its process.

    The file may be removed by whoever holds the lock: one that waited for a removed file takes the new one instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    while True:
        with open(name, "w", opener=regular_files.opener) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: another process is at work on it; waiting until it is done", path)
                fcntl.flock(file, fcntl.LOCK_EX)
            if same_file(file.fileno(), name):
                yield
                return


def use_file(workspace: Path) -> Path:
    """The file on which every process that makes artifacts in a workspace holds a shared lock until it ends."""
    folder = workspace / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / ".use"


def mark_used(workspace: Path) -> None:
    """Keeps `relevance releases gc` away until this process ends: its inputs may belong to no release yet."""
    path = use_file(workspace).absolute()
    if path in _uses and same_file(_uses[path], path):
        return
    while len(_uses) >= USED_AT_ONCE:
        os.close(_uses.pop(next(iter(_uses))))
    handle = regular_files.opener(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_SH)
    _uses[path] = handle


@contextmanager
def used(workspace: Path) -> Iterator[None]:
    """Keeps `relevance releases gc` away within the block, which waits for one that removes something now."""
    with open(use_file(workspace), "a", opener=regular_files.opener) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: gc removes something now; waiting until it is done", workspace)
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def let_go(workspace: Path) -> None:
    """Ends this process's own mark on a workspace."""
    handle = _uses.pop(use_file(workspace).absolute(), None)
    if handle is not None:
        os.close(handle)


def remove_if_unused(workspace: Path) -> None:
    """Removes a workspace that holds nothing but empty folders and lock files which no process holds."""
    files = [path for path in workspace.rglob("*") if not path.is_dir()]
    if not workspace.is_dir() or any(path.name != ".use" and not _LOCK.fullmatch(path.name) for path in files):
        return
    if files:
        let_go(workspace)
    with contextlib.suppress(OSError):  # Another process holds a lock, or has written something meanwhile.
        for path in files:
            with open(path, "w", opener=regular_files.opener) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        for folder, _, _ in os.walk(workspace, topdown=False):
            os.rmdir(folder)


def same_file(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
