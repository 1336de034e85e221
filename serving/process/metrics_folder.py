"""The folder in which the processes of one service add up their metrics; it ends with the service."""

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "relevance-metrics-"

KINDS = ("counter", "gauge_livemax", "gauge_livesum", "histogram", "unknown")
"""Kinds of metrics of a process, each of which has a file KIND_PID.db."""

RESERVED = 2**18
"""Bytes of each of these files, more than all series of a kind take."""


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """Makes a temporary folder for metrics, and removes those that killed services have left behind.

    The owner holds a lock on the file `lock` in its folder. The kernel lets go of it when the owner dies, however it
    dies, so a folder whose lock is free belongs to nobody.
    """
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        lock = os.open(folder / "lock.new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "lock.new").rename(folder / "lock")  # It has this name only once it is held.
            yield folder
        finally:
            os.close(lock)


def remove_abandoned() -> None:
    """Removes the metrics folders of this user whose owner is dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # Another user's, or gone meanwhile.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(path.parent, ignore_errors=True)
        finally:
            os.close(lock)


def reserve(folder: Path) -> bool:
    """Makes the files of this process with their room on the disk; returns whether the disk has it.

    The library of metrics maps files with holes into memory, and a process that writes to a page which the disk has no
    room for ends by SIGBUS.
    """
    process = multiprocessing.current_process().pid  # The library names the files by it.
    assert process is not None
    files = _files(folder, process)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)  # What cleans temporary folders may have removed it.
        for path in files:
            path.write_bytes(bytes(RESERVED))
    except OSError:
        for path in files:
            path.unlink(missing_ok=True)
        return False
    return True


def forget(folder: Path, process: int) -> None:
    """Removes what counts for living processes from the files of a dead one, and the room that the rest does not use.

    A file begins with the number of bytes that are used.
    """
    for path in _files(folder, process):
        with contextlib.suppress(OSError):
            with path.open("rb+") as file:
                used = int.from_bytes(file.read(4), sys.byteorder)
                file.truncate(used)
            if path.name.startswith("gauge_live") or not used:
                path.unlink()


def _files(folder: Path, process: int) -> list[Path]:
    return [folder / f"{kind}_{process}.db" for kind in KINDS]
