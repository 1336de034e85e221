"""Reads files of NumPy's formats, and tells damage from a disk that does not answer.

NumPy raises errors of seven kinds for damaged content, some of its header's parser and of zipfile; here they are one.
"""

import io
import tokenize
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import artifacts
from pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DAMAGE = (EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)


@contextmanager
def _damage_named() -> Iterator[None]:
    """A context in which every error that damaged content causes is a ValueError."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def load(path: Path, mode: Literal["r", "r+"] | None = None) -> "NDArray[Any]":
    """The array of a .npy file.

    Args:
        mode: maps the file into memory, read-only or for changes too; None reads it.

    Raises:
        ValueError: the content is damaged, or holds Python objects.
        OSError: the file cannot be read now.
    """
    import numpy as np

    with _damage_named():
        loaded: NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    return loaded


def load_named(path: Path, names: Collection[str]) -> "dict[str, NDArray[Any]]":
    """The arrays of these names in a .npz file.

    Raises:
        ValueError: the content is damaged, holds Python objects, or lacks a name.
        OSError: the file cannot be read now.
    """
    import numpy as np

    content = io.BytesIO(path.read_bytes())  # So that a damaged position is no error of the disk.
    with _damage_named(), np.load(content, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names}


def of_artifact(path: Path, mode: Literal["r"] | None = None) -> "NDArray[Any]":
    """The array of a .npy file of an artifact; see `load`.

    Raises:
        ArtifactError: not a readable array; says how to restore it.
    """
    try:
        return load(path, mode)
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: not a readable array ({error}); {artifacts.remedy(path)}") from error
