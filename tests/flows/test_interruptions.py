"""A command that is interrupted says so and ends, and no process of it goes on without it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import own_process
from pipeline import machine_memory
from pipeline.errors import RelevanceError
from pipeline.machine_memory import MemoryLimit

STARTER = """
from tests.flows import test_interruptions
from flows import own_process
if __name__ == "__main__":
    own_process.run(test_interruptions.note_and_sleep, {file!r})
"""


def note_and_sleep(file: str) -> None:
    """Writes the number of this process into the file, and works for longer than any test."""
    part = Path(file + ".part")
    part.write_text(str(os.getpid()))
    part.rename(file)
    time.sleep(3600)


def run_out_of_memory() -> None:
    raise RuntimeError("std::bad_alloc")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            run_out_of_memory,
            r"^memory ran out \(std::bad_alloc\); .* GiB.* Raise that, end other programs, or give less",
        ),
        (be_killed, "ended by SIGKILL, most often because memory ran out: .* GiB"),
    ],
)
def test_work_in_a_process_of_its_own_that_gets_no_memory_says_so(
    work: Callable[[], None], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit = MemoryLimit(1 << 30, "ulimit -v allows 1.0 GiB in all")
    monkeypatch.setattr(machine_memory, "of_shell", lambda: limit)
    with pytest.raises(RelevanceError, match=message):
        own_process.run(work)
    assert caplog.messages[0].startswith(f"memory: {limit.name}; a library that gets too little")


def _is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_work_in_a_process_of_its_own_ends_with_the_command(tmp_path: Path, number: signal.Signals) -> None:
    script, noted = tmp_path / "starter.py", tmp_path / "pid"
    script.write_text(STARTER.format(file=str(noted)))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    while not noted.exists():
        assert command.poll() is None
        time.sleep(0.05)
    helper = int(noted.read_text())
    command.send_signal(number)
    assert command.wait(120) != 0
    deadline = time.monotonic() + 120
    while _is_running(helper) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(helper)


def test_an_interrupted_command_says_how_to_go_on(tiny_world: Path, tmp_path: Path) -> None:
    arguments = ["retrain", str(tiny_world / "tiny.toml"), "--set", f"data.root={tiny_world}"]
    arguments += ["--workspace", str(tmp_path / "workspace")]
    command = subprocess.Popen([sys.executable, "-m", "flows.cli", *arguments], stderr=subprocess.PIPE, text=True)
    assert command.stderr is not None
    command.stderr.readline()
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=120)
    assert (command.returncode, errors.splitlines()[-1:]) == (
        130,
        ["relevance: stopped; start the same command again to go on"],
    )
    assert "Traceback" not in errors
