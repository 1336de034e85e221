"""Files and folders that have a name of their own until they are whole, beside the place that they will take.

The name has a random part, and the maker holds a lock on it until the end. The kernel lets go of the lock when the
maker dies, however it dies, so whoever gets the lock may remove what is left. Process ids in the names would not do:
two containers that share a volume may have processes of the same id.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.locks import same_file

_NAME = re.compile(r"\..+\.[0-9a-f]+\.tmp")


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to be written and renamed to `path`; removed at the end if it was not.

    Raises:
        OSError: the folder cannot be written.
    """
    with _temporary(path, folder=False) as temporary:
        yield temporary


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to be filled and renamed to `path`; removed at the end if it was not.

    Raises:
        OSError: the folder around it cannot be written.
    """
    with _temporary(path, folder=True) as temporary:
        yield temporary


def is_abandoned(path: Path) -> bool:
    """Whether this is a temporary file or folder whose maker is dead."""
    with _taken(path) as abandoned:
        return abandoned


def remove_if_abandoned(path: Path) -> None:
    """Removes a temporary file or folder whose maker is dead, and nothing else."""
    with _taken(path) as abandoned:
        if abandoned:
            _remove(path)


@contextmanager
def _taken(path: Path) -> Iterator[bool]:
    """Holds the lock of a temporary, if its maker no longer does; yields whether that is so."""
    handle = None
    try:
        if _NAME.fullmatch(path.name):
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        abandoned = handle is not None
    except OSError:
        abandoned = False
    try:
        yield abandoned
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    for other in path.parent.iterdir():
        if other.name.startswith(f".{path.name}."):
            remove_if_abandoned(other)
    temporary, handle = _locked(path, folder=folder)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _locked(path: Path, *, folder: bool) -> tuple[Path, int]:
    """A new temporary and the open file that holds its lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        if folder:
            temporary.mkdir()
            flags = os.O_RDONLY
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            handle = os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            continue  # A folder that another process took for abandoned before it was locked.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return temporary, handle  # A file system without locks, on which nothing counts as abandoned.
        if same_file(handle, temporary):
            return temporary, handle
        os.close(handle)  # Taken for abandoned between its creation and its lock.


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
