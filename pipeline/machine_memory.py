"""The memory that this process may take, and errors that say it ran out, whichever library raises them.

Torch, ONNX Runtime, protobuf, Rust and the loader of shared libraries each word it their own way, and code that reads
a file takes it for damage of the file. So the ends of a process ask here first.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import MemoryShortageError
from pipeline.text import split_lines

SHORTAGE_WORDS = (
    "allocate memory",  # "can't allocate memory", "Cannot allocate memory (os error 12)", "Failed to allocate memory"
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",
)
"""Parts of messages by which libraries report a shortage that the error's class does not show."""
WORDS_UNDER_A_LIMIT = (
    "failed to map segment from shared object",
    "can't start new thread",
    "Failed to serialize proto",
)
"""Parts of messages that mean a shortage where the address space is bounded, and may mean something else elsewhere."""
UNLIMITED = 1 << 60
"""Bytes from which a limit bounds nothing; control groups of version 1 write no limit as a number like this."""


@dataclass(frozen=True, order=True, slots=True)
class MemoryLimit:
    """A bound on the memory of this process."""

    bytes: int
    """Bytes that this process may still take, as far as the bound tells."""
    name: str
    """The bound in words, with its size."""


def tightest(process: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")) -> MemoryLimit:
    """The lowest bound of this process: of the machine, its control groups, or its shell, less what is taken there.

    Args:
        process: the folder in which the kernel describes this process.
        groups: the folder of the control groups.
    """
    return min([_machine(), *_of_groups(process, groups), *_of_shell(process)])


def of_shell(process: Path = Path("/proc/self")) -> MemoryLimit | None:
    """The lowest bound that `ulimit` sets; None where it sets none."""
    return min(_of_shell(process), default=None)


def _machine() -> MemoryLimit:
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return MemoryLimit(size, f"this machine has {_shown(size)}")


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _of_shell(process: Path) -> Iterator[MemoryLimit]:
    """The bounds that `ulimit` sets, less the address space and data that the process has already."""
    for kind, taken, option in ((resource.RLIMIT_AS, "VmSize", "-v"), (resource.RLIMIT_DATA, "VmData", "-d")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            left = max(limit - _status(process, taken), 0)
            yield MemoryLimit(left, f"ulimit {option} allows {_shown(limit)} in all")


def _status(process: Path, key: str) -> int:
    """Bytes that the kernel counts for the process under a key; 0 where it does not say."""
    try:
        lines = split_lines((process / "status").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def _of_groups(process: Path, groups: Path) -> Iterator[MemoryLimit]:
    """The bounds of the control groups that hold the process, as a container or a service manager sets them."""
    try:
        lines = split_lines((process / "cgroup").read_text(encoding="utf-8"))
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        inner = root / path.lstrip("/")
        # A container may see its own group as the root while the path is that of the machine.
        for folder in {inner, *inner.parents, root}:
            if folder.is_relative_to(root) and (limit := _number(folder / name)) < UNLIMITED:
                yield MemoryLimit(limit, f"{name} of the control group allows {_shown(limit)}")


def _number(file: Path) -> int:
    """The number in a file of a control group; no limit where it has none."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return UNLIMITED


def is_shortage(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that memory ran out."""
    return _reason(error) is not None


def _reason(error: BaseException | None) -> BaseException | None:
    """The first error, of those that led to this one, that says that memory ran out; None where none does."""
    is_bounded = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    known = (*SHORTAGE_WORDS, *(WORDS_UNDER_A_LIMIT if is_bounded else ()))
    first = None
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in known):
            first = error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return first


@contextmanager
def shortage_told() -> Iterator[None]:
    """Turns an error that says memory ran out, or that came of one, into one that says what to do.

    Raises:
        MemoryShortageError: memory ran out.
    """
    try:
        yield
    except MemoryShortageError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        words = (str(reason).strip() or type(reason).__name__).partition("\n")[0][:200]
        raise MemoryShortageError(f"memory ran out ({words}); {remedy()}") from error


def remedy() -> str:
    """The tightest bound of this process, and what to do where memory ran out."""
    return f"{tightest().name}. Raise that, end other programs, or give less at once: fewer documents, a smaller model"
