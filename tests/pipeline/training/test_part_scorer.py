"""The file of states of an interrupted scoring: read again, replaced where damaged, kept where its disk is away."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ArtifactError
from pipeline.training.part_scorer import StateFile

SHAPE = (3, 2, 4)
ROWS = np.arange(3)


def written(folder: Path) -> StateFile:
    states = StateFile.opened(folder, SHAPE)
    states.write(ROWS, np.arange(24, dtype=np.float16).reshape(SHAPE))
    return states


def test_a_later_run_finds_the_states(tmp_path: Path) -> None:
    digest = written(tmp_path).digest(ROWS)
    assert (StateFile.opened(tmp_path, SHAPE).digest(ROWS) == digest).all()


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    path = written(tmp_path).path
    path.write_bytes(b"\x00" * 20)
    assert not StateFile.opened(tmp_path, SHAPE).states.any()


def test_a_header_with_an_open_bracket_is_made_anew_too(tmp_path: Path) -> None:
    """NumPy's parser of headers raises an error that is no ValueError there."""
    written(tmp_path)
    path = tmp_path / "states.npy"
    path.write_bytes(path.read_bytes().replace(b"), }", b"(, }", 1))
    assert not StateFile.opened(tmp_path, SHAPE).states.any()


def test_states_that_cannot_be_read_for_a_while_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(tmp_path)
    original = np.lib.format.open_memmap

    def unreachable(path: Path, mode: str = "r+", **settings: Any) -> Any:
        if mode == "r+":
            raise OSError(5, "Input/output error", str(path))
        return original(path, mode=mode, **settings)

    with monkeypatch.context() as away:
        away.setattr(np.lib.format, "open_memmap", unreachable)
        with pytest.raises(ArtifactError, match="cannot be read now"):
            StateFile.opened(tmp_path, SHAPE)
    assert (StateFile.opened(tmp_path, SHAPE).digest(ROWS) == first.digest(ROWS)).all()


def test_a_file_that_an_earlier_run_left_without_its_room_gets_it(tmp_path: Path) -> None:
    """Writing to a hole of a mapped file on a full disk ends the process with SIGBUS."""
    path = tmp_path / "states.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(1000, 2, 64)).flush()
    assert path.stat().st_blocks * 512 < path.stat().st_size
    StateFile.opened(tmp_path, (1000, 2, 64))
    assert path.stat().st_blocks * 512 >= path.stat().st_size
