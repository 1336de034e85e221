"""Arrival of a release's files, which rsync or NFS may bring after the pointer or the trial that names them."""

import errno
import os
from pathlib import Path

from pipeline import artifacts, machine_memory
from pipeline.errors import MissingError, RelevanceError

RETRY_S = 30.0
"""After so long a release is tried again that failed for a reason which may pass, such as memory or open files."""

REFUSED_WORDS = (os.strerror(errno.EMFILE), "unable to open database file")
"""Words of libraries that raise errors of their own, ONNX Runtime, Faiss and SQLite, where a file was not opened."""

FolderStamp = tuple[tuple[str, int, int], ...]
"""Path, size and time of change of each file."""


class IncompleteReleaseError(MissingError):
    """A release some of whose files are not there yet."""


def check_complete(folder: Path) -> None:
    """Compares the files of a release with the sizes in its manifest, without reading them.

    Raises:
        IncompleteReleaseError: a file is missing or shorter than it should be; names the first.
    """
    try:
        manifest = artifacts.read_manifest(folder)
    except RelevanceError as error:
        raise IncompleteReleaseError(f"{folder / artifacts.MANIFEST}: not there, or not whole yet") from error
    for name, record in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise IncompleteReleaseError(f"{folder / name}: not there yet") from error
        if size < record.bytes:
            raise IncompleteReleaseError(f"{folder / name}: {size} of {record.bytes} bytes are there")


def may_pass(error: Exception) -> bool:
    """Whether a release that failed to load with this error may load later; see `RETRY_S`.

    So it is where the system refused a file that is there, also where another error tells of it: too many are open,
    this user may not read it yet, the disk does not answer.
    """
    if isinstance(error, OSError) or machine_memory.is_shortage(error):
        return True
    cause: BaseException | None = error
    while cause is not None:
        refused = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        if refused or any(words in str(cause) for words in REFUSED_WORDS):
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def folder_stamp(folder: Path) -> FolderStamp:
    """The files of a folder, without reading them; empty where there is no such folder."""
    files = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except OSError:
            continue  # It was moved between the listing and now.
        files.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return tuple(files)
