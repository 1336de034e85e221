import dataclasses
import errno
import gc
import itertools
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ArtifactError, MissingError
from serving.errors import NotReadyError
from serving.rollout.arrival import may_pass
from serving.rollout.lifecycle import RETRY_S, Lifecycle
from serving.scoring.answers import MissingShard, ShardCounts
from serving.scoring.searcher import Searcher
from tests.serving.patience import patient


@pytest.fixture
def lifecycle(fresh: Any) -> Any:
    fresh.releases.promote(fresh.publish(1), reason="test")
    started = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60))
    started.start()
    yield started
    started.stop()


def promote(fresh: Any, *args: Any, **knobs: Any) -> str:
    release = fresh.publish(*args, **knobs)
    fresh.releases.promote(release, reason="test")
    return release


def test_a_moved_pointer_is_followed_and_the_old_release_ends_what_it_began(lifecycle: Lifecycle, fresh: Any) -> None:
    old = lifecycle.current
    expected = old.search("sort a list").reranked
    new = promote(fresh, 2)
    lifecycle.poll()
    assert lifecycle.current.release == new
    assert lifecycle.swaps == 1
    assert lifecycle.refused is None
    assert old.search("sort a list").reranked == expected
    assert lifecycle.current.search("sort a list").reranked != expected


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_an_old_release_that_is_not_kept_leaves_memory_with_its_last_request(fresh: Any, kept: int) -> None:
    promote(fresh, 1)
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60, kept_releases=kept))
    lifecycle.start()
    old = lifecycle.current
    old.search("sort a list")
    first, gone = old.release, weakref.ref(old)
    for seed in range(2, 2 + kept):
        promote(fresh, seed)
        lifecycle.poll()
        assert first in lifecycle.kept
    promote(fresh, 2 + kept)
    lifecycle.poll()
    assert (len(lifecycle.kept), first in lifecycle.kept) == (kept, False)
    assert gone() is old
    del old
    gc.collect()
    assert gone() is None
    lifecycle.close()


def test_a_rollback_needs_no_loading(lifecycle: Lifecycle, fresh: Any, monkeypatch: Any) -> None:
    old = lifecycle.current
    new = promote(fresh, 2)
    lifecycle.poll()

    def fail(path: Path) -> Any:
        raise AssertionError(f"{path} was loaded again")

    monkeypatch.setattr(lifecycle, "_load", fail)
    for wanted in (old.release, new, old.release):
        fresh.releases.rollback(reason="test") if wanted != new else fresh.releases.promote(new, reason="test")
        lifecycle.poll()
        assert lifecycle.current.release == wanted
    assert lifecycle.current is old
    assert lifecycle.kept == [new]


def test_the_memory_for_token_ids_follows_that_for_scores(fresh: Any) -> None:
    promote(fresh, 1)
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60, cache_bytes=16_000))
    lifecycle.start()
    searcher = lifecycle.current
    for number in range(50):
        searcher.search(f"sort list {number}")
    assert 0 < searcher.ranker.tokeniser.bytes <= 1000
    assert 0 < searcher.encoder.tokeniser.bytes <= 1000
    lifecycle.stop()


def test_a_rollback_finds_its_scores_in_the_cache(lifecycle: Lifecycle, fresh: Any) -> None:
    first = lifecycle.current.search("sort a list")
    promote(fresh, 2)
    lifecycle.poll()
    assert lifecycle.current.search("sort a list").cache_hits == 0
    fresh.releases.rollback(reason="test")
    lifecycle.poll()
    back = lifecycle.current.search("sort a list")
    assert back.release == first.release
    assert back.cache_misses == 0
    assert back.reranked == first.reranked


def test_a_release_that_is_not_what_its_exporter_saw_is_refused(
    lifecycle: Lifecycle, fresh: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = lifecycle.current
    new = promote(fresh, 2, lie=3.0)
    with caplog.at_level(logging.ERROR):
        lifecycle.poll()
    assert lifecycle.current is old
    assert lifecycle.refused is not None
    assert lifecycle.refused.release == new
    assert "golden" in lifecycle.refused.reason
    assert lifecycle.refusals.count == 1
    assert f"release {new[:12]}: refused" in caplog.text
    # Promoting a sound one ends it.
    third = promote(fresh, 3)
    lifecycle.poll()
    assert lifecycle.current.release == third
    assert lifecycle.refused is None


def test_a_refused_release_is_not_tried_again_until_the_pointer_moves(lifecycle: Lifecycle, fresh: Any) -> None:
    promote(fresh, 2, lie=3.0)
    for _ in range(3):
        lifecycle.poll()
    assert lifecycle.refusals.count == 1
    fresh.releases.rollback(reason="test")
    lifecycle.poll()
    assert lifecycle.refused is None
    assert lifecycle.swaps == 0


@pytest.mark.parametrize("content", ["", "{", '{"release": "0000"}', "[]"])
def test_a_broken_pointer_leaves_the_old_release(lifecycle: Lifecycle, fresh: Any, content: str) -> None:
    old = lifecycle.current
    (fresh.path / "releases" / "live.json").write_text(content)
    lifecycle.poll()
    assert lifecycle.current is old
    assert lifecycle.refused is not None


def test_a_vanished_pointer_leaves_the_old_release(lifecycle: Lifecycle, fresh: Any) -> None:
    old = lifecycle.current
    (fresh.path / "releases" / "live.json").unlink()
    lifecycle.poll()
    assert lifecycle.current is old


def test_an_unexpected_error_while_loading_is_no_end(lifecycle: Lifecycle, fresh: Any, monkeypatch: Any) -> None:
    old = lifecycle.current

    def fail(path: Path) -> Any:
        raise MemoryError("no room for two")

    monkeypatch.setattr(lifecycle, "_load", fail)
    promote(fresh, 2)
    lifecycle.poll()
    assert lifecycle.current is old
    assert lifecycle.refused is not None
    assert "MemoryError: no room for two" in lifecycle.refused.reason


def test_the_watch_takes_a_release_by_itself_also_as_the_first(fresh: Any) -> None:
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=0.02))
    with pytest.raises(NotReadyError, match="no release is loaded"):
        _ = lifecycle.current
    lifecycle.watch()
    try:
        release = promote(fresh, 1)
        until = time.monotonic() + 60
        while lifecycle.loaded is None and time.monotonic() < until:
            time.sleep(0.02)
        assert lifecycle.current.release == release
    finally:
        lifecycle.stop()


def test_a_pinned_release_does_not_follow(fresh: Any) -> None:
    first = promote(fresh, 1)
    lifecycle = Lifecycle(patient(workspace=fresh.path, release=first[:10], threads=1, poll_s=0.01))
    lifecycle.start()
    promote(fresh, 2)
    time.sleep(0.1)
    assert lifecycle.current.release == first


def test_starting_without_a_release_or_with_a_bad_one_says_so(fresh: Any) -> None:
    with pytest.raises(
        MissingError, match=r"`relevance quickstart DOCUMENTS --workspace .*` makes a release without judgments"
    ):
        Lifecycle(patient(workspace=fresh.path)).start()
    promote(fresh, 1, lie=3.0)
    with pytest.raises(ArtifactError, match="golden"):
        Lifecycle(patient(workspace=fresh.path, threads=1)).start()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    replace(path, bytes(data))


def cut(path: Path) -> None:
    replace(path, path.read_bytes()[:-7])


def replace(path: Path, data: bytes) -> None:
    """Writes a file of its own in place of one that other releases share by a hard link."""
    path.unlink()
    path.write_bytes(data)


DAMAGED = [
    "ranker/model.fp32.onnx", "ranker/bundle.json", "ranker/golden.json", "encoder/tokenizer.json", "manifest.json",
    "fusion/fusion.json", "documents/manifest.json",
]  # fmt: skip


def test_a_damaged_release_is_refused_and_the_old_one_goes_on(lifecycle: Lifecycle, fresh: Any) -> None:
    old = lifecycle.current
    new = promote(fresh, 2)
    for name, damage in itertools.product(DAMAGED, (flip, cut, Path.unlink)):
        path = fresh.folder(new) / name
        intact = path.read_bytes()
        damage(path)
        os.utime(fresh.path / "releases" / "live.json")
        before = lifecycle.refusals.count
        lifecycle.poll()
        assert lifecycle.current is old, (name, damage)
        assert lifecycle.refusals.count == before + 1
        assert lifecycle.refused is not None
        assert lifecycle.refused.release == new
        path.unlink(missing_ok=True)
        path.write_bytes(intact)
    assert old.search("sort a list").release == old.release
    os.utime(fresh.path / "releases" / "live.json")
    lifecycle.poll()
    assert (lifecycle.current.release, lifecycle.refused) == (new, None)


def test_a_workspace_that_is_away_is_named_once_and_followed_again_when_it_is_back(
    lifecycle: Lifecycle, fresh: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old, away = lifecycle.current, fresh.path.with_name("away")
    fresh.path.rename(away)
    lifecycle.poll()
    lifecycle.poll()
    assert caplog.text.count("live.json is gone") == 1
    assert lifecycle.current is old
    assert old.search("sort a list").release == old.release
    away.rename(fresh.path)
    lifecycle.poll()
    assert lifecycle.current is old
    new = promote(fresh, 2)
    lifecycle.poll()
    assert lifecycle.current.release == new


def test_a_full_disk_while_loading_is_survived_and_the_release_tried_again(
    lifecycle: Lifecycle, fresh: Any, monkeypatch: Any
) -> None:
    """Loading writes no file of its own, but a library may; and memory or open files may be short for a while."""
    old = lifecycle.current
    new = promote(fresh, 2)

    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "_load", full)
        lifecycle.poll()
        assert lifecycle.current is old
        assert lifecycle.refused is not None
        assert "No space left on device" in lifecycle.refused.reason
    lifecycle.poll()
    assert lifecycle.current is old  # Not at each look, as loading takes a while.
    assert lifecycle.refusals.retry_at == pytest.approx(time.monotonic() + RETRY_S, abs=20)
    lifecycle.refusals.retry_at = time.monotonic()
    lifecycle.poll()
    assert lifecycle.current.release == new
    assert lifecycle.refused is None


@pytest.mark.parametrize("name", ["live.json", "manifest.json"])
def test_a_file_that_cannot_be_opened_for_a_while_delays_a_release(
    lifecycle: Lifecycle, fresh: Any, monkeypatch: Any, name: str
) -> None:
    """Idle clients may hold all open files; the error that tells of it is one of our own."""
    lifecycle.stop()
    old = lifecycle.current
    new = promote(fresh, 2)
    real = os.open

    def exhausted(path: Any, *rest: Any, **more: Any) -> int:
        if Path(path).name == name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", exhausted)
        lifecycle.poll()
    assert lifecycle.current is old
    assert lifecycle.refused is not None
    assert "Too many open files" in lifecycle.refused.reason
    lifecycle.poll()
    assert lifecycle.current is old
    assert lifecycle.refusals.retry_at is not None
    lifecycle.refusals.retry_at = time.monotonic()
    lifecycle.poll()
    assert lifecycle.current.release == new


def test_what_may_pass_is_told_from_damage() -> None:
    def wrapped(cause: Exception) -> ArtifactError:
        try:
            raise ArtifactError("a file of the release cannot be read") from cause
        except ArtifactError as error:
            return error

    assert may_pass(wrapped(PermissionError(errno.EACCES, "denied")))
    assert may_pass(wrapped(sqlite3.OperationalError("unable to open database file")))
    assert may_pass(wrapped(wrapped(RuntimeError("Load model failed: Too many open files"))))
    assert not may_pass(wrapped(FileNotFoundError(errno.ENOENT, "not there")))
    assert not may_pass(wrapped(ValueError("not JSON")))


def test_a_release_waits_for_its_shards_which_are_asked_after_pauses_that_double(
    lifecycle: Lifecycle, fresh: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lifecycle.stop()  # Its thread would poll beside this test.
    lifecycle.settings = dataclasses.replace(lifecycle.settings, poll_s=1)
    old = lifecycle.current
    new = promote(fresh, 2)
    probed: list[str] = []
    complete = {old.release}

    def probe(searcher: Searcher) -> ShardCounts:
        probed.append(searcher.release)
        missing = [] if searcher.release in complete else [MissingShard(shard="http://b", reason="HTTP 404")]
        return ShardCounts(answered=2 - len(missing), of=2, missing=missing)

    monkeypatch.setattr(Searcher, "probe_shards", probe)
    pauses = []
    for _ in range(7):
        lifecycle.poll()
        lifecycle.poll()  # Before its time, so that nobody is asked.
        pauses.append(lifecycle.refusals.pause_s)
        assert lifecycle.refusals.retry_at is not None
        assert 0 < lifecycle.refusals.retry_at - time.monotonic() <= pauses[-1]
        lifecycle.refusals.retry_at = time.monotonic()
    assert pauses == [1, 2, 4, 8, 16, RETRY_S, RETRY_S]
    assert probed == [new, old.release] * 7
    assert lifecycle.current is old
    assert lifecycle.refused is not None
    assert "1 of its 2 shards answer, and 2 of the live release's" in lifecycle.refused.reason
    assert "(http://b: HTTP 404)" in lifecycle.refused.reason
    assert (lifecycle.refusals.count, sum("refused" in record.getMessage() for record in caplog.records)) == (1, 1)
    complete.add(new)
    probed.clear()
    lifecycle.poll()
    assert (lifecycle.current.release, lifecycle.refused) == (new, None)
    assert probed == [new]  # The live one is asked only where the new one is short of shards.


def test_each_release_that_answers_is_announced_with_the_warnings_of_its_report(
    fresh: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serving.rollout.lifecycle.surface_warnings", lambda _: ["worse than BM25"])
    caplog.set_level(logging.INFO)
    releases = [promote(fresh, 1)]
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60))
    lifecycle.start()
    releases.append(promote(fresh, 2))
    lifecycle.poll()
    lifecycle.stop()
    lines = [record.getMessage() for record in caplog.records if record.name == "serving.rollout.lifecycle"]
    expected = [
        f"release {release[:12]}: {line}" for release in releases for line in ("answers from now on", "worse than BM25")
    ]
    assert [line for line in lines if line in expected] == expected


def test_a_pointer_that_arrives_before_its_files_is_followed_once_they_are_there(
    lifecycle: Lifecycle, fresh: Any, tmp_path: Path
) -> None:
    """Files of a workspace that rsync or NFS brings may come in any order; the pointer does not move a second time."""
    old = lifecycle.current
    new = fresh.publish(2)
    folder, elsewhere = fresh.folder(new), tmp_path / "elsewhere"
    folder.rename(elsewhere)
    pointer = json.loads((fresh.path / "releases" / "live.json").read_text())
    pointer |= {"release": new, "previous": old.release, "generation": pointer["generation"] + 1}
    (fresh.path / "releases" / "live.json").write_text(json.dumps(pointer))
    for _ in range(3):
        lifecycle.poll()
        assert lifecycle.current is old
        assert lifecycle.refused is not None
    assert lifecycle.refusals.count == 1
    files = sorted(path for path in elsewhere.rglob("*") if path.is_file())
    for path in files:
        target = folder / path.relative_to(elsewhere)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        lifecycle.poll()
        assert lifecycle.current is old
    assert lifecycle.refusals.count == 1  # Not tried while files were arriving.
    lifecycle.poll()
    assert (lifecycle.current.release, lifecycle.refused) == (new, None)


def test_a_pointer_that_moves_on_while_a_release_loads_is_followed_to_its_end(
    lifecycle: Lifecycle, fresh: Any, monkeypatch: Any
) -> None:
    second, third = fresh.publish(2), fresh.publish(3)
    taken, load = [], lifecycle._load

    def slow(path: Path) -> Any:
        searcher = load(path)
        if path.name == second:
            fresh.releases.promote(third, reason="the second one was a mistake")
        return searcher

    monkeypatch.setattr(lifecycle, "_load", slow)
    swap = lifecycle._swap
    monkeypatch.setattr(lifecycle, "_swap", lambda searcher: (taken.append(searcher.release), swap(searcher)))
    fresh.releases.promote(second, reason="test")
    lifecycle.poll()
    assert taken == [third]
    assert lifecycle.current.release == third


def test_a_start_on_a_damaged_release_takes_the_one_before(fresh: Any) -> None:
    """A worker that is replaced starts anew, while the others go on with the old release."""
    first = promote(fresh, 1)
    bad = promote(fresh, 2, lie=3.0)
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60))
    lifecycle.start()
    assert lifecycle.current.release == first
    assert lifecycle.refused is not None
    assert lifecycle.refused.release == bad
    third = promote(fresh, 3)
    lifecycle.poll()
    assert (lifecycle.current.release, lifecycle.refused) == (third, None)
    lifecycle.close()


def test_the_watch_survives_whatever_following_raises(fresh: Any, monkeypatch: Any) -> None:
    promote(fresh, 1)
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=0.01))
    failed = threading.Event()

    def fail(*_: Any) -> None:
        failed.set()
        raise ValueError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "_follow_pointer", fail)
        lifecycle.start()
        assert failed.wait(60)
    new = promote(fresh, 2)
    until = time.monotonic() + 60
    while lifecycle.current.release != new and time.monotonic() < until:
        time.sleep(0.01)
    assert lifecycle.current.release == new
    lifecycle.close()
