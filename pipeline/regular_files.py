"""Files that are neither pipes nor devices, whose opening or reading may never end.

Data that a person names is checked by `refuse_special`, whose error says what to do. The files of a workspace are
opened by `opener` or `read`, which wait for nothing.
"""

import errno
import os
import stat
from pathlib import Path

from pipeline.errors import SchemaError


def refuse_special(path: Path, *, pipes: bool = False) -> None:
    """Refuses a path that is there and no file: reading a device may never end, and a pipe is read only once.

    Args:
        pipes: allow a pipe between two processes, such as /dev/stdin, for what is read once. A named pipe, which may
            have no other end, is refused all the same.

    Raises:
        SchemaError: the path is a folder, a device or a pipe.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # Whoever reads it says so.
    if stat.S_ISDIR(mode):
        raise SchemaError(f"{path}: is a folder, not a file; name the file in it")
    is_unnamed_pipe = stat.S_ISFIFO(mode) and not path.resolve().exists()
    if not (stat.S_ISREG(mode) or (pipes and is_unnamed_pipe)):
        raise SchemaError(f"{path}: is a pipe or a device, not a file; write what it gives into a file and name that")


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
