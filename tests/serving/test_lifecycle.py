import gc
import logging
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ArtifactError, MissingError
from serving.errors import NotReadyError
from serving.lifecycle import Lifecycle
from serving.settings import Settings


@pytest.fixture
def lifecycle(fresh: Any) -> Any:
    fresh.releases.promote(fresh.publish(1), reason="test")
    found = Lifecycle(Settings(workspace=fresh.path, threads=1, poll_s=60))
    found.start()
    yield found
    found.stop()


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
    lifecycle = Lifecycle(Settings(workspace=fresh.path, threads=1, poll_s=60, kept_releases=kept))
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
    assert lifecycle.refusals == 1
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
    assert lifecycle.refusals == 1
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
    lifecycle = Lifecycle(Settings(workspace=fresh.path, threads=1, poll_s=0.02))
    with pytest.raises(NotReadyError, match="no release is loaded"):
        _ = lifecycle.current
    lifecycle.watch()
    try:
        release = promote(fresh, 1)
        until = time.monotonic() + 10
        while lifecycle.loaded is None and time.monotonic() < until:
            time.sleep(0.02)
        assert lifecycle.current.release == release
    finally:
        lifecycle.stop()


def test_a_pinned_release_does_not_follow(fresh: Any) -> None:
    first = promote(fresh, 1)
    lifecycle = Lifecycle(Settings(workspace=fresh.path, release=first[:10], threads=1, poll_s=0.01))
    lifecycle.start()
    promote(fresh, 2)
    time.sleep(0.1)
    assert lifecycle.current.release == first


def test_starting_without_a_release_or_with_a_bad_one_says_so(fresh: Any) -> None:
    with pytest.raises(MissingError, match="run `relevance retrain` first"):
        Lifecycle(Settings(workspace=fresh.path)).start()
    promote(fresh, 1, lie=3.0)
    with pytest.raises(ArtifactError, match="golden"):
        Lifecycle(Settings(workspace=fresh.path, threads=1)).start()
