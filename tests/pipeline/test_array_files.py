"""Damaged NumPy files: random bytes over every part of a file, seed named."""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import array_files
from pipeline.errors import ArtifactError

ARRAYS = {"digests": np.arange(160, dtype=np.uint8).reshape(10, 16), "vectors": np.ones((10, 3), np.float32)}


def damaged(content: bytes, end: int, seed: int) -> Iterator[bytes]:
    """Copies of a file with some of its first `end` bytes replaced, or its rest cut off."""
    drawn = random.Random(seed)
    for _ in range(400):
        copy = bytearray(content)
        for _ in range(drawn.choice((1, 2, 8))):
            copy[drawn.randrange(end)] = drawn.randrange(256)
        yield bytes(copy[: drawn.randrange(len(copy))] if drawn.random() < 0.1 else copy)


def kinds_of_errors(path: Path, contents: Iterator[bytes], read: Callable[[Path], Any]) -> set[type[Exception]]:
    kinds: set[type[Exception]] = set()
    for content in contents:
        path.write_bytes(content)
        try:
            read(path)
        except Exception as error:
            kinds.add(type(error))
    return kinds


@pytest.mark.filterwarnings("ignore")  # NumPy's, about strange headers.
@pytest.mark.parametrize("mode", [None, "r", "r+"])
def test_every_damage_of_an_array_is_a_value_error(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "array.npy"
    np.save(path, ARRAYS["vectors"])
    assert np.array_equal(array_files.load(path, mode), ARRAYS["vectors"])
    contents = damaged(path.read_bytes(), 128, 2)
    assert issubclass_all(kinds_of_errors(path, contents, lambda file: array_files.load(file, mode)), ValueError)


@pytest.mark.filterwarnings("ignore")
def test_every_damage_of_an_artifacts_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, ARRAYS["vectors"])
    assert kinds_of_errors(path, damaged(path.read_bytes(), 128, 3), array_files.of_artifact) == {ArtifactError}


@pytest.mark.filterwarnings("ignore")
def test_every_damage_of_named_arrays_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, allow_pickle=True, **ARRAYS)

    def read(file: Path) -> Mapping[str, Any]:
        return array_files.load_named(file, ARRAYS)

    assert {name: array.tolist() for name, array in read(path).items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }
    content = path.read_bytes()
    assert issubclass_all(kinds_of_errors(path, damaged(content, len(content), 4), read), ValueError)


def test_a_file_that_is_away_is_no_damage(tmp_path: Path) -> None:
    for read in (array_files.load, lambda file: array_files.load_named(file, ["vectors"])):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "away.npy")


def test_nothing_else_reads_numpys_files() -> None:
    root = Path(__file__).parents[2]
    paths = [path for package in ("flows", "index", "pipeline", "serving") for path in (root / package).rglob("*.py")]
    assert [path.name for path in paths if "np.load(" in path.read_text(encoding="utf-8")] == ["array_files.py"]


def issubclass_all(kinds: set[type[Exception]], parent: type[Exception]) -> bool:
    """Whether there are such errors and no others."""
    return bool(kinds) and all(issubclass(kind, parent) for kind in kinds)
