"""Files on a disk: digests, writes that survive a power cut, and one clear error when the disk is full."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ArtifactError, ConfigError, RelevanceError
from pipeline.temporary import temporary_file, temporary_folder

_FileState = tuple[int, int, int, int]
"""Device, inode, bytes, and the time of the last change of content in nanoseconds."""
_memories: dict[int, dict[_FileState, str]] = {}
"""The digests that each open `digests_remembered` block has seen; the key is the memory's own `id`."""


@contextmanager
def digests_remembered() -> Iterator[None]:
    """Hashes each file once within the block, under whichever of its names (hard links), as long as it is unchanged.

    A re-index hashes a shared file for the artifact that it links it into, for the release, and for the promotion. A
    file that anything wrote to has another state, so it is read again. Threads share what is remembered.
    """
    memory: dict[_FileState, str] = {}
    _memories[id(memory)] = memory
    try:
        yield
    finally:
        del _memories[id(memory)]


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        state = _state(file.fileno())
        memories = list(_memories.values())
        known = next((memory[state] for memory in memories if state in memory), None)
        if known is not None:
            return known
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _state(file.fileno()) == state:
            for memory in memories:
                memory[state] = digest
    return digest


def _state(handle: int) -> _FileState:
    # The inode's own time (ctime) is left out: each further hard link changes it.
    stats = os.fstat(handle)
    return stats.st_dev, stats.st_ino, stats.st_size, stats.st_mtime_ns


def check_writable(folder: Path) -> None:
    """Checks that files can be made in a folder, or in the nearest that is there for one that is not; leaves nothing.

    Raises:
        ConfigError: they cannot: a file is in the way, the folder or its disk is read-only, or the disk is full.
    """
    if reason := writing_fault(folder):
        raise ConfigError(f"{folder}: {reason}; name a folder of which you may change the content, on a disk with room")


def writing_fault(folder: Path) -> str:
    """The reason why no file can be made in a folder, as of `check_writable`; empty where one can."""
    nearest = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot be written ({nearest}: {os.strerror(error.errno or errno.EIO)})"
    return ""


def _nearest(path: Path) -> Path:
    """This path, or the nearest folder above it that is there."""
    # Unlike `Path.exists`, this says no where a folder above may not be entered.
    return next(candidate for candidate in (path, *path.absolute().parents) if os.path.exists(candidate))


def check_new_folder(to: Path) -> None:
    """Checks that a folder can be given this name once all is in it.

    Raises:
        ConfigError: it cannot: something is there that is no empty folder or cannot be replaced, or see
            `check_writable`.
    """
    if to.is_symlink() or to.is_mount() or (to.is_dir() and to.samefile(Path.cwd())):
        raise ConfigError(f"{to}: is a link, a mount point or the current folder; name a new folder in it")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to}: is there already and not empty; name a new folder")
    check_writable(to)


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Yields an empty folder to be filled, which gets its name at the end, synced, and is removed where that fails.

    Raises:
        ConfigError: see `check_new_folder`.
        OSError: the disk is full, or something was put into an empty folder of this name meanwhile.
    """
    check_new_folder(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(to) as staging:
        yield staging
        for path in [*staging.rglob("*"), staging]:
            fsync(path)
        staging.rename(to)  # Replaces an empty folder, and no other.
    fsync(to.parent)


def fsync(path: Path) -> None:
    """Makes a file's content, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str, parse: Callable[[str], object]) -> None:
    """Replaces a small text file so that a reader sees the old one or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        text: the new content.
        parse: the reader of this file, which the new text must pass before it replaces anything; `str` for a text that
            only people read.

    Raises:
        ArtifactError: the new text cannot be read back; the old file stays.
        OSError: the disk is full or the folder cannot be written; the old file stays.
    """
    with temporary_file(path) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            if temporary.read_bytes().decode() != text:
                raise ValueError("the disk gave back another text")
            parse(text)
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{path}: not replaced, as the new text cannot be read back ({error})") from error
        os.replace(temporary, path)
    fsync(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name; a copy where the file system has no hard links, or is another one.

    Raises:
        OSError: there is no such file, or the disk is full.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copyfile(source, target)


@contextmanager
def readable_errors(final: Path) -> Iterator[None]:
    """Turns a full or read-only disk, however a library words it, into one clear error."""
    try:
        yield
    except RelevanceError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not _full_disk(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise ArtifactError(
            f"{final}: could not be written ({os.strerror(_full_disk(cause))}; {free_mib(final):.0f} MiB free); "
            f"{writing_advice(cause)} and run again, nothing half-written was kept"
        ) from error


def free_mib(path: Path) -> float:
    """Free space of the disk on which a file or folder is, or would be made, in MiB."""
    return shutil.disk_usage(_nearest(path)).free / 2**20


def writing_advice(error: BaseException) -> str:
    """The advice on a failed write, by what its exception says of the disk."""
    return _ADVICE.get(_error_number(error, _ADVICE), "look at the path, its permissions and the free space")


_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room or raise the quota",
    errno.EFBIG: "raise the largest size of a file (`ulimit -f`)",
    errno.EROFS: "make the disk writable again",
    errno.EIO: "mend the disk, which reports errors, or restore what was on it",
}
"""Error number of a failed write → what to do."""
_FULL = tuple(number for number in _ADVICE if number != errno.EIO)
"""Errors that only a write can have; a disk may fail to read too."""


def _full_disk(error: BaseException) -> int:
    """The error number by which an exception says that a disk takes no more; 0 for other exceptions."""
    return _error_number(error, _FULL)


def _error_number(error: BaseException, numbers: Collection[int]) -> int:
    """The error number of an exception if it is one of these, else 0.

    Libraries in Rust and C++ (safetensors, tokenizers, Faiss) raise errors of their own, with the words of the system.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in numbers else 0
    text = str(error)
    if isinstance(error, OSError) and "requested and" in text:  # As numpy has it: "10000 requested and 2484 written".
        return errno.ENOSPC
    return next((number for number in numbers if f"(os error {number})" in text or os.strerror(number) in text), 0)


@contextmanager
def kept_if_unreadable(file: Path) -> Iterator[None]:
    """Turns a failed read of finished work into an error, so that nobody takes the file for damaged and replaces it.

    Its disk may only be away for a while. Damage shows in the content; errors of other kinds pass.

    Raises:
        ArtifactError: the file cannot be read now.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{file}: cannot be read now ({error}); it stays as it is, run again when the disk answers, or move the "
            "file away to do its work again"
        ) from error
