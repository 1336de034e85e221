"""Opens the files of a workspace, none of which is a pipe or a device: an open or a read of those may never end."""

import errno
import os
import stat
from pathlib import Path


def opener(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """The `opener` of a built-in `open` that refuses at once whatever is no regular file.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe, a socket or a device.
    """
    try:
        handle = os.open(path, flags | os.O_NONBLOCK, mode)  # Without the flag, a pipe waits for its other end.
    except OSError as error:
        if error.errno == errno.ENXIO:  # A socket, or a pipe without a reader.
            raise _special(path) from error
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise _special(path)


def _special(path: str | os.PathLike[str]) -> OSError:
    return OSError(errno.EINVAL, "is a folder, a pipe or a device, not a file", os.fspath(path))


def read(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `opener` does.
    """
    with open(path, "rb", opener=opener) as file:
        return file.read()
