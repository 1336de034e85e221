"""The file that thumbs are appended to: whole lines on the disk, bounded in size and in lines a second."""

import errno
import os
import threading
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from pipeline import disk, locks, regular_files, thumbs
from pipeline.errors import ConfigError
from pipeline.thumbs import Thumb
from serving.errors import BusyError, ServingError, StateError

MAX_BYTES = 64 * 2**20
"""Size at which the file takes no more thumbs."""

RATE = 2.0
"""Thumbs a second that each process takes in the long run."""

BURST = 20
"""Thumbs that each process takes at once after a pause."""


class ThumbFile:
    """Appends thumbs to one file, also beside other processes; safe to use from many threads."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Makes the folder and the file where they are not there.

        Raises:
            ConfigError: they cannot be made or written.
        """
        self.path = folder / thumbs.FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", opener=regular_files.opener):
                pass
            disk.fsync(folder)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: thumbs cannot be written there ({error.strerror}); set RELEVANCE_THUMBS to a folder "
                "that the service may write, or leave it empty"
            ) from error
        self._clock = clock
        self._lock = threading.Lock()
        self._allowance, self._counted = float(BURST), clock()

    def append(self, thumb: Thumb) -> None:
        """Writes a thumb on a line of its own, after whatever a power cut left, and waits until the disk has it.

        Raises:
            BusyError: more thumbs came than are taken a second.
            StateError: the file is full.
            ServingError: the disk is full, the file cannot be written or its folder is gone; nothing of the thumb stays
                there.
        """
        self._take_turn()
        if not self.path.parent.is_dir():  # A new one would lie below the mount point of a disk that comes back.
            raise ServingError("the thumb is not kept: its folder is gone; bring it back, or mount its disk again")
        line = thumb.to_json().encode() + b"\n"
        try:
            with locks.locked(self.path), open(self.path, "a+b", 0, opener=regular_files.opener) as file:
                _append(file, line, self.path)
        except OSError as error:
            raise ServingError(f"the thumb is not kept: the file cannot be written ({error.strerror})") from error

    def _take_turn(self) -> None:
        """Counts a thumb against the rate."""
        with self._lock:
            now = self._clock()
            self._allowance = min(BURST, self._allowance + RATE * (now - self._counted))
            self._counted = now
            if self._allowance < 1:
                raise BusyError(f"more than {RATE:g} thumbs a second; ask again in 1 s", 1)
            self._allowance -= 1


def _append(file: FileIO, line: bytes, path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    if size + len(line) > MAX_BYTES:
        raise StateError(f"{path.name} has {size:,} bytes and takes no more; move it away after a report on it")
    if size:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            line = b"\n" + line
    try:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        os.truncate(path, size)
        raise
