"""Temporary files and folders: names that nobody else has, and removal of what dead processes left alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from flows import gc
from pipeline import disk, temporary

MAKERS = (temporary.temporary_file, temporary.temporary_folder)
SCRIPT = """
import sys, time
from pathlib import Path
from pipeline import temporary
with getattr(temporary, sys.argv[1])(Path(sys.argv[2])):
    print("made", flush=True)
    time.sleep(600)
"""


@contextmanager
def other_process(maker: Callable[[Path], AbstractContextManager[Path]], path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a temporary on the way to `path`; killed at the end."""
    command = [sys.executable, "-c", SCRIPT, maker.__name__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        try:
            yield process
        finally:
            process.kill()


def left(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.tmp"))


@pytest.mark.parametrize("maker", MAKERS)
def test_two_at_once_have_different_names_and_leave_nothing(
    tmp_path: Path, maker: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    with maker(tmp_path / "x") as first, maker(tmp_path / "x") as second:
        assert first != second
        assert left(tmp_path) == sorted([first, second])
    assert left(tmp_path) == []


@pytest.mark.parametrize("maker", MAKERS)
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(
    tmp_path: Path, maker: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    with other_process(maker, tmp_path / "x") as living:
        (held,) = left(tmp_path)
        assert not temporary.is_abandoned(held)
        temporary.remove_if_abandoned(held)
        with maker(tmp_path / "x"):
            assert held.exists()
        living.send_signal(signal.SIGKILL)
        living.wait()
    assert temporary.is_abandoned(held)
    with maker(tmp_path / "x") as own:
        assert left(tmp_path) == [own]


@pytest.mark.parametrize("maker", MAKERS)
def test_one_on_the_way_to_another_place_stays(
    tmp_path: Path, maker: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    with other_process(maker, tmp_path / "x"):
        pass
    (abandoned,) = left(tmp_path)
    with maker(tmp_path / "y"):
        assert abandoned.exists()


@pytest.mark.parametrize("where", [".", "releases", "artifacts/ranker"])
def test_gc_removes_what_killed_processes_left_everywhere(tmp_path: Path, where: str) -> None:
    folder = tmp_path / where
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for maker in MAKERS:
            with other_process(maker, folder / f"dead-{maker.__name__}.json"):
                pass
            stack.enter_context(other_process(maker, folder / "living.json"))
        (folder / ".live.json.12345.tmp").write_text("{")  # As versions before named them.
        removed = gc.gc(tmp_path, keep=1, act=True)
        assert len([item for item in removed["items"] if ".tmp" in item["path"]]) == 3
        assert [path.name.split(".")[1] for path in left(folder)] == ["living", "living"]


def test_a_text_is_replaced_while_another_process_with_the_same_number_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers on one volume: `parse` of the first runs the second."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "live.json"

    def meanwhile(_text: str) -> None:
        disk.write_atomically(path, "second", str)

    disk.write_atomically(path, "first", meanwhile)
    assert path.read_text() == "first"
    assert left(tmp_path) == []


def test_no_name_is_made_from_the_number_of_a_process() -> None:
    root = Path(__file__).resolve().parents[2]
    for package in ("pipeline", "index", "serving", "flows"):
        for file in (root / package).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            assert "getpid" not in source, f"{file}: take pipeline.temporary for names of temporaries"
            assert "mkstemp" not in source, f"{file}: take pipeline.temporary, whose leftovers are found"
