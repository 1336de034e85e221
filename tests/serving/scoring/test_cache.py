import threading
import time
import tracemalloc
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.items import Priority
from serving.scoring.cache import Cache, Key
from serving.scoring.reranker import Caches

NEVER = RequestOptions(Deadline.never())


def cache(max_bytes: int = 1 << 20) -> Cache[float]:
    return Cache(max_bytes, lambda _: 24)


def key(name: str) -> bytes:
    return Key().of(name)


def lengths(names: list[str], asked: list[str] | None = None):
    """Computes the length of each name, noting what it was asked."""

    def compute(places: list[int]) -> Iterable[tuple[int, float]]:
        for place in places:
            if asked is not None:
                asked.append(names[place])
            yield place, float(len(names[place]))

    return compute


def test_values_come_in_the_order_of_their_keys_and_only_once_from_the_model() -> None:
    found, asked = cache(), []
    names = ["bb", "a", "bb", "ccc"]
    first = found.fetch([key(name) for name in names], lengths(names, asked), NEVER)
    assert first.values == [2.0, 1.0, 2.0, 3.0]
    assert (first.hits, first.misses) == (1, 3)
    again = found.fetch([key(name) for name in reversed(names)], lengths(names[::-1], asked), NEVER)
    assert again.values == [3.0, 2.0, 1.0, 2.0]
    assert (again.hits, again.misses) == (4, 0)
    assert asked == ["bb", "a", "ccc"]


def test_nothing_asked_gives_nothing() -> None:
    assert cache().fetch([], lengths([]), NEVER).values == []


parts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)


@given(parts, parts)
def test_keys_differ_when_their_parts_do(one: list[str], other: list[str]) -> None:
    """Also where the parts, joined, are the same text."""
    assert (Key(*one).of() == Key(*other).of()) == (one == other)
    if one:
        assert Key(*one[:1]).of(*one[1:]) == Key().of(*one)


def test_identical_work_at_one_moment_is_done_once() -> None:
    found, asked, begun, go = cache(), [], threading.Event(), threading.Event()

    def slow(places: list[int]) -> Iterable[tuple[int, float]]:
        asked.extend(places)
        begun.set()
        assert go.wait(5)
        yield from ((place, 7.0) for place in places)

    answers: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(found.fetch([key("x")], slow, NEVER).values)) for _ in range(8)
    ]
    threads[0].start()
    assert begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    while found.stats().joined < 7:
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join(5)
    assert answers == [[7.0]] * 8
    assert asked == [0]
    assert found.stats().misses == 1


def test_who_waits_takes_over_when_the_other_gives_up() -> None:
    found, begun, go = cache(), threading.Event(), threading.Event()

    def gives_up(places: list[int]) -> Iterable[tuple[int, float]]:
        begun.set()
        assert go.wait(5)
        raise DeadlineError("over")
        yield 0, 0.0

    def first() -> None:
        with pytest.raises(DeadlineError):
            found.fetch([key("x")], gives_up, NEVER)

    owner = threading.Thread(target=first)
    owner.start()
    assert begun.wait(5)
    threading.Timer(0.05, go.set).start()
    taken = found.fetch([key("x")], lengths(["xx"]), NEVER)
    owner.join(5)
    assert taken.values == [2.0]
    assert (taken.hits, taken.misses) == (0, 1)


def test_waiting_for_another_ends_at_the_deadline() -> None:
    found, begun, go = cache(), threading.Event(), threading.Event()

    def slow(places: list[int]) -> Iterable[tuple[int, float]]:
        begun.set()
        assert go.wait(5)
        yield 0, 1.0

    owner = threading.Thread(target=lambda: found.fetch([key("x")], slow, RequestOptions(Deadline.after(0.01))))
    owner.start()
    assert begun.wait(5)
    with pytest.raises(DeadlineError):
        found.fetch([key("x")], lengths(["x"]), RequestOptions(Deadline.after(0.02)))
    go.set()
    owner.join(5)


@pytest.mark.parametrize("patient", [NEVER, RequestOptions(Deadline.after(0), Priority.BATCH)])
def test_a_request_does_not_wait_for_one_that_may_be_far_behind_it(patient: RequestOptions) -> None:
    found, begun, go = cache(), threading.Event(), threading.Event()
    late: list[list[float]] = []

    def slow(places: list[int]) -> Iterable[tuple[int, float]]:
        begun.set()
        assert go.wait(5)
        yield 0, 1.0

    owner = threading.Thread(target=lambda: late.append(found.fetch([key("x")], slow, patient).values))
    owner.start()
    assert begun.wait(5)
    own = found.fetch([key("x")], lengths(["xx"]), RequestOptions(Deadline.after(5)))
    assert (own.values, own.misses) == ([2.0], 1)
    go.set()
    owner.join(5)
    assert late == [[1.0]]
    assert found.fetch([key("x")], lengths([]), NEVER).hits == 1


def test_who_waits_for_a_failure_tries_for_himself() -> None:
    """An error names the text of the request that waited, not that of the request that computed."""
    found, begun, go = cache(), threading.Event(), threading.Event()

    def theirs(places: list[int]) -> Iterable[tuple[int, Any]]:
        begun.set()
        assert go.wait(5)
        yield from ((place, InferenceError(f"one {place}")) for place in places)

    def mine(places: list[int]) -> list[tuple[int, Any]]:
        return [(place, 1.0 if place == 0 else InferenceError(f"two {place}")) for place in places]

    def first() -> None:
        with pytest.raises(InferenceError, match="one 0"):
            found.fetch([key("x")], theirs, NEVER)

    owner = threading.Thread(target=first)
    owner.start()
    assert begun.wait(5)
    threading.Timer(0.05, go.set).start()
    with pytest.raises(InferenceError, match="two 1"):
        found.fetch([key("y"), key("x")], mine, NEVER)
    owner.join(5)


def test_one_failure_leaves_its_neighbours_and_is_tried_again() -> None:
    found = cache()

    def partly(places: list[int]) -> Iterable[tuple[int, float | Exception]]:
        for place in places:
            yield place, InferenceError("bad") if place == 1 else float(place)

    keys = [key("a"), key("b"), key("c")]
    with pytest.raises(InferenceError, match="bad"):
        found.fetch(keys, partly, NEVER)
    assert found.fetch([keys[0], keys[2]], lengths(["", ""]), NEVER).values == [0.0, 2.0]
    assert found.fetch([keys[1]], lengths(["bbbb"]), NEVER).values == [4.0]


def test_what_was_computed_before_a_deadline_is_kept() -> None:
    found = cache()

    def half(places: list[int]) -> Iterable[tuple[int, float]]:
        yield 0, 1.0
        raise DeadlineError("over")

    with pytest.raises(DeadlineError):
        found.fetch([key("a"), key("b")], half, NEVER)
    assert found.fetch([key("a")], lengths(["wrong"]), NEVER).values == [1.0]


def test_a_model_that_forgets_a_value_is_an_error_not_a_hang() -> None:
    found = cache()
    with pytest.raises(RuntimeError, match="1 of 1"):
        found.fetch([key("a")], lambda places: [], NEVER)
    assert found.fetch([key("a")], lengths(["a"]), NEVER).values == [1.0]


@pytest.mark.parametrize("max_bytes", [0, 100])
def test_a_cache_too_small_for_anything_still_answers(max_bytes: int) -> None:
    found, asked = cache(max_bytes), []
    for _ in range(2):
        assert found.fetch([key("a")], lengths(["a"], asked), NEVER).values == [1.0]
    assert asked == ["a", "a"]
    assert found.stats().entries == 0


def test_the_bytes_that_are_counted_are_the_memory_that_is_taken() -> None:
    limit = 1 << 20
    caches = Caches.of(limit)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, 8000, 500):
            keys = [key(f"{start + place}") for place in range(500)]
            caches.scores.fetch(keys, lambda places: ((place, place * 0.37) for place in places), NEVER)
            caches.vectors.fetch(keys, lambda places: ((place, np.zeros(64, np.float32)) for place in places), NEVER)
            del keys
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    facts = [caches.scores.stats(), caches.vectors.stats()]
    assert all(fact.evictions for fact in facts)
    counted = sum(fact.bytes for fact in facts)
    assert counted <= limit
    # Dictionaries double as they grow, so the count is an average.
    assert taken == pytest.approx(counted, rel=0.3)


def test_the_least_recently_used_leaves_first() -> None:
    found = cache(3 * 288)
    for name in ("a", "b", "c"):
        found.fetch([key(name)], lengths([name]), NEVER)
    found.fetch([key("a")], lengths(["wrong"]), NEVER)
    found.fetch([key("d")], lengths(["d"]), NEVER)
    asked: list[str] = []
    found.fetch([key("a"), key("b")], lengths(["a", "b"], asked), NEVER)
    assert asked == ["b"]
