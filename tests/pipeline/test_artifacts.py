import ast
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts, disk
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, MissingError
from pipeline.manifest import Manifest


def _make(workspace: Path, text: str = "hello", calls: list[str] | None = None, **changes: Any) -> Artifact:
    def build(staging: Staging) -> Mapping[str, Any]:
        if calls is not None:
            calls.append(text)
        (staging.folder / "part").mkdir()
        (staging.folder / "part" / "a.txt").write_text(text, encoding="utf-8")
        return {"words": 1}

    options: dict[str, Any] = {"version": 1, "config": {"x": (1, 2)}, "inputs": {"source": "abc"}} | changes
    return artifacts.make(workspace, "thing", build=build, **options)


def test_second_make_returns_the_first_and_does_not_build(tmp_path: Path) -> None:
    calls: list[str] = []
    first = _make(tmp_path, calls=calls)
    second = _make(tmp_path, text="other", calls=calls)
    assert calls == ["hello"]
    assert second.fingerprint == first.fingerprint
    assert second.file("part/a.txt").read_text(encoding="utf-8") == "hello"
    assert second.metrics["words"] == 1


@pytest.mark.parametrize("changes", [{"version": 2}, {"config": {"x": [1, 3]}}, {"inputs": {"source": "abd"}}])
def test_fingerprint_follows_version_config_and_inputs(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert _make(tmp_path).fingerprint != _make(tmp_path, **changes).fingerprint


def test_failed_build_leaves_no_artifact_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    def build(staging: Staging) -> Mapping[str, Any]:
        (staging.folder / "half.txt").write_text("half", encoding="utf-8")
        staging.checkpoint.mkdir(exist_ok=True)
        (staging.checkpoint / "step").write_text("7", encoding="utf-8")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        artifacts.make(tmp_path, "thing", version=1, config={}, inputs={}, build=build)
    left = sorted(path.name for path in (tmp_path / "artifacts" / "thing").iterdir() if path.is_dir())
    assert len(left) == 1
    assert left[0].endswith(".checkpoint")


def test_finished_artifact_takes_its_checkpoint_away(tmp_path: Path) -> None:
    def build(staging: Staging) -> Mapping[str, Any]:
        staging.checkpoint.mkdir()
        (staging.folder / "a").write_text("a", encoding="utf-8")
        return {}

    artifact = artifacts.make(tmp_path, "thing", version=1, config={}, inputs={}, build=build)
    assert [path for path in artifact.path.parent.iterdir() if path.is_dir()] == [artifact.path]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest"])
def test_damage_is_named_and_never_rebuilt_silently(tmp_path: Path, damage: str) -> None:
    artifact = _make(tmp_path)
    file = artifact.path / "part" / "a.txt"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[2] ^= 1
        file.write_bytes(data)
    elif damage == "delete":
        file.unlink()
    else:
        file = artifact.path / "manifest.json"
        file.write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=file.name):
        _make(tmp_path)


def test_wrong_kind_and_missing_folder(tmp_path: Path) -> None:
    artifact = _make(tmp_path)
    with pytest.raises(ArtifactError, match="holds a thing, not a release"):
        artifacts.load(artifact.path, "release")
    with pytest.raises(MissingError):
        artifacts.load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"without b\.txt"):
        artifact.file("b.txt")


def test_full_disk_is_one_clear_error_however_deep_it_is_buried(tmp_path: Path) -> None:
    def build(staging: Staging) -> Mapping[str, Any]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("a library's own words") from error

    with pytest.raises(ArtifactError, match=r"No space left on device.*nothing half-written"):
        artifacts.make(tmp_path, "thing", version=1, config={}, inputs={}, build=build)
    assert not list((tmp_path / "artifacts" / "thing").glob("*.partial"))


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room and"), (errno.EROFS, "make the disk writable again and"), (errno.EFBIG, "ulimit -f")],
)
def test_a_disk_that_takes_no_more_is_answered_with_what_helps(number: int, advice: str, tmp_path: Path) -> None:
    def build(staging: Staging) -> Mapping[str, Any]:
        raise RuntimeError(f"I/O error: words of the system (os error {number})")

    with pytest.raises(ArtifactError, match=advice):
        artifacts.make(tmp_path, "thing", version=1, config={}, inputs={}, build=build)


def test_real_write_limit(tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse the write, as a full disk does."""
    script = textwrap.dedent(f"""
        import resource, signal, sys
        from pathlib import Path
        from pipeline import artifacts
        from pipeline.errors import ArtifactError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        def build(staging):
            (staging.folder / "big").write_bytes(bytes(1_000_000))
            return {{}}
        try:
            artifacts.make(Path({str(tmp_path)!r}), "thing", version=1, config={{}}, inputs={{}}, build=build)
        except ArtifactError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert not [path for path in (tmp_path / "artifacts" / "thing").iterdir() if path.is_dir()]


def test_killed_build_is_made_again_from_the_start(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from pipeline import artifacts
        def build(staging):
            (staging.folder / "a.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        artifacts.make(Path({str(tmp_path)!r}), "thing", version=1, config={{"x": [1, 2]}},
                       inputs={{"source": "abc"}}, build=build)
    """)
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    artifact = _make(tmp_path)
    assert artifact.file("part/a.txt").read_text(encoding="utf-8") == "hello"
    assert not (artifact.path / "a.txt").exists()


def test_two_makers_of_one_artifact_build_it_once(tmp_path: Path) -> None:
    calls: list[str] = []
    threads = [threading.Thread(target=_make, args=(tmp_path, "hello", calls)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["hello"]


def test_sync_order_is_files_then_manifest_then_rename_then_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real_fsync, real_rename = disk.fsync, Path.rename

    def fsync(path: Path) -> None:
        seen.append(f"sync {path.name}")
        real_fsync(path)

    def rename(self: Path, target: Path) -> Path:
        seen.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(disk, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    artifact = _make(tmp_path)
    partial = f"{artifact.fingerprint}.partial"
    assert seen == ["sync a.txt", "sync part", f"sync {partial}", "rename", "sync thing"]


def test_write_atomically_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "live.json"
    disk.write_atomically(path, "old", str)

    def refuse(_source: Any, _target: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        disk.write_atomically(path, "new", str)
    assert path.read_text(encoding="utf-8") == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["live.json"]


def test_manifest_survives_json(tmp_path: Path) -> None:
    artifact = _make(tmp_path)
    again = Manifest.from_json((artifact.path / "manifest.json").read_text(encoding="utf-8"))
    assert again.files == artifact.manifest.files
    assert again.config == json.loads(json.dumps(artifact.manifest.config))


def test_no_other_file_decides_by_itself_what_is_finished() -> None:
    """A folder with a manifest may be unfinished by its name, so nobody globs for manifests."""
    root = Path(__file__).parents[2]
    guilty = []
    for package in ("pipeline", "index", "serving", "flows"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                if called and node.func.attr in ("glob", "rglob") and "MANIFEST" in ast.dump(node):  # type: ignore[attr-defined]
                    guilty.append(path)
    assert not guilty


def test_the_oldest_is_first_whatever_the_file_times_of_a_copy_say(tmp_path: Path) -> None:
    """A copied or restored workspace has file times of its own; a damaged manifest leaves the file's time alone."""
    years = {2024: "2024-05-01T00:00:00+00:00", 2025: "", 2026: "2026-05-01T00:00:00+00:00"}
    folders = []
    for number, (year, created) in enumerate(years.items()):
        path = _make(tmp_path, config={"year": year}).path
        manifest = replace(artifacts.read_manifest(path), created=created)
        (path / artifacts.MANIFEST).write_text(manifest.to_json() if created else "{", encoding="utf-8")
        copied = datetime(2025, 12 - number, 1, tzinfo=UTC).timestamp()
        os.utime(path / artifacts.MANIFEST, (copied, copied))
        folders.append(path)
    assert artifacts.finished(tmp_path, "thing") == folders


def test_a_file_is_read_once_for_its_digests_as_long_as_it_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, linked, digest = tmp_path / "a", tmp_path / "b", hashlib.file_digest
    path.write_bytes(b"first")
    read = []
    monkeypatch.setattr(disk.hashlib, "file_digest", lambda *given: (read.append(given), digest(*given))[1])
    with disk.digests_remembered():
        first = disk.sha256(path)
        os.link(path, linked)
        assert (disk.sha256(linked), len(read)) == (first, 1)
        path.write_bytes(b"other")
        os.utime(path, ns=(0, 1))
        assert disk.sha256(linked) == hashlib.sha256(b"other").hexdigest()
        with disk.digests_remembered():
            disk.sha256(path)
        assert len(read) == 2
    disk.sha256(path)
    assert len(read) == 3
