"""The folder in which the processes of one service add up their metrics; it ends with the service."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "relevance-metrics-"


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
