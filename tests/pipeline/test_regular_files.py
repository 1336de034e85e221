"""A pipe, a socket, a folder or a device in the place of a workspace's file is refused at once, by every reader."""

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from flows import gc, ready_made
from flows import releases as listing
from index.store_file import UseLock
from pipeline import artifacts, locks, regular_files, temporary, thumbs
from pipeline.errors import ArtifactError, ConfigError, MissingError
from pipeline.pointer import Move, PointerFile
from serving.api import keys
from serving.api.thumb_file import ThumbFile
from serving.rollout.trials import TrialFile
from serving.settings import Settings

REASON = "is a folder, a pipe or a device, not a file"


@pytest.fixture(autouse=True)
def never_waits() -> Iterator[None]:
    """Ends a test that waits for the other end of a pipe."""

    def waited(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError("waits for a file that is none")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(path.parent)  # The path of a socket has a hundred characters at most.
        unix.bind(path.name)
        os.chdir(here)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": put_pipe,
    "socket": put_socket,
    "device": put_device,
    "folder": Path.mkdir,
}


@pytest.fixture(params=KINDS)
def special(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return KINDS[request.param]


@pytest.mark.parametrize("mode", ["rb", "w", "a+b"])
def test_what_is_no_regular_file_is_refused(mode: str, special: Callable[[Path], None], tmp_path: Path) -> None:
    special(tmp_path / "state")
    with pytest.raises(OSError, match=r"not a file|Is a directory"):
        open(tmp_path / "state", mode, opener=regular_files.opener).close()


def test_a_regular_file_is_made_written_and_read(tmp_path: Path) -> None:
    with open(tmp_path / "state", "w", encoding="utf-8", opener=regular_files.opener) as file:
        file.write("größe\n")
    (tmp_path / "link").symlink_to("state")
    assert regular_files.read(tmp_path / "link").decode() == "größe\n"


def test_a_release_with_such_a_manifest_is_listed_as_damaged(special: Callable[[Path], None], tmp_path: Path) -> None:
    release = "0" * 32
    folder = tmp_path / "artifacts" / "release" / release
    folder.mkdir(parents=True)
    special(folder / "manifest.json")
    (entry,) = listing.releases(tmp_path)["releases"]
    assert entry["release"] == release
    assert REASON in entry["damaged"]
    with pytest.raises(ArtifactError, match=REASON):
        artifacts.load(folder)
    with pytest.raises((ArtifactError, OSError), match=REASON):
        UseLock(folder)


def test_such_a_pointer_is_named_and_the_next_promotion_reads_the_history(
    special: Callable[[Path], None], tmp_path: Path
) -> None:
    file = PointerFile(tmp_path / "releases")
    move = Move(release="a" * 32, action="promote", reason="", expected=None, earlier=(), rolled_back={})
    file.move(move)
    file.path.unlink()
    special(file.path)
    with pytest.raises(ArtifactError, match=f"live.json: not a readable pointer.*{REASON}"):
        file.read()
    recovered = file.recover()
    assert recovered is not None
    assert recovered.release == "a" * 32
    file.history_path.unlink()
    special(file.history_path)
    assert file.history() == ([], 1)


def test_gc_refuses_a_workspace_whose_state_is_no_file(special: Callable[[Path], None], tmp_path: Path) -> None:
    special(tmp_path / "artifacts-use")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts-use").rename(locks.use_file(tmp_path))
    with pytest.raises(OSError, match=r"not a file|Is a directory"):
        gc.gc(tmp_path, keep=1)


def test_trials_keys_and_thumbs_that_are_no_file_are_named(special: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    for name in ("releases/trials.json", "keys", thumbs.FILE, ready_made.MEMORY):
        special(tmp_path / name)
    with pytest.raises(ArtifactError, match=f"trials.json: not readable.*{REASON}"):
        TrialFile(tmp_path).read()
    with pytest.raises(MissingError, match=f"keys: the hashes of API keys cannot be read.*{REASON}"):
        keys.hashes(Settings(api_keys_file=str(tmp_path / "keys")))
    with pytest.raises(ConfigError, match=f"{re.escape(thumbs.FILE)}: thumbs cannot be written"):
        ThumbFile(tmp_path)
    memory: Any = ready_made._memory(tmp_path)
    assert memory == {"requests": {}, "widths": {}}


def test_a_lock_that_is_no_file_is_not_waited_for(special: Callable[[Path], None], tmp_path: Path) -> None:
    special(tmp_path / ".live.json.lock")
    with pytest.raises(OSError, match=r"not a file|Is a directory"), locks.locked(tmp_path / "live.json"):
        pass
    assert not temporary.is_abandoned(tmp_path / ".live.json.lock")
    special(tmp_path / ".a.0f.tmp")
    temporary.is_abandoned(tmp_path / ".a.0f.tmp")


def test_a_service_keeps_its_keys_when_their_file_becomes_a_pipe(tmp_path: Path) -> None:
    _, digest = keys.make()
    (tmp_path / "keys").write_text(digest, encoding="utf-8")
    now = [0.0]
    ring = keys.KeyRing(Settings(api_keys_file=str(tmp_path / "keys")), clock=lambda: now[0])
    before = list(ring.known())
    (tmp_path / "keys").unlink()
    put_pipe(tmp_path / "keys")
    now[0] = 2 * keys.CHECK_S
    assert list(ring.known()) == before
