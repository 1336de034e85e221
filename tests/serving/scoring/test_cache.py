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
from serving.scoring.cache import ENTRY_BYTES, Cache, Key
from serving.scoring.process_caches import Caches

NEVER = RequestOptions(Deadline.never())


def cache(max_bytes: int = 1 << 20) -> Cache[float]:
    return Cache(max_bytes, lambda _: 24)


def key(name: str) -> bytes:
    return Key().of(name)


def lengths(names: list[str], computed: list[str] | None = None):
    """Computes the length of each name, noting what it was asked."""

    def compute(indices: list[int]) -> Iterable[tuple[int, float]]:
        for index in indices:
            if computed is not None:
                computed.append(names[index])
            yield index, float(len(names[index]))

    return compute


def test_values_come_in_the_order_of_their_keys_and_only_once_from_the_model() -> None:
    values, computed = cache(), []
    names = ["bb", "a", "bb", "ccc"]
    first = values.fetch([key(name) for name in names], lengths(names, computed), NEVER)
    assert first.values == [2.0, 1.0, 2.0, 3.0]
    assert (first.hits, first.misses) == (1, 3)
    again = values.fetch([key(name) for name in reversed(names)], lengths(names[::-1], computed), NEVER)
    assert again.values == [3.0, 2.0, 1.0, 2.0]
    assert (again.hits, again.misses) == (4, 0)
    assert computed == ["bb", "a", "ccc"]


def test_nothing_asked_gives_nothing() -> None:
    assert cache().fetch([], lengths([]), NEVER).values == []


parts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)


@given(parts, parts)
def test_keys_differ_when_their_parts_do(key_parts: list[str], other_key_parts: list[str]) -> None:
    """Also where the parts, joined, are the same text."""
    assert (Key(*key_parts).of() == Key(*other_key_parts).of()) == (key_parts == other_key_parts)
    if key_parts:
        assert Key(*key_parts[:1]).of(*key_parts[1:]) == Key().of(*key_parts)


def test_identical_work_at_one_moment_is_done_once() -> None:
    values, computed, begun, go = cache(), [], threading.Event(), threading.Event()

    def slow(indices: list[int]) -> Iterable[tuple[int, float]]:
        computed.extend(indices)
        begun.set()
        assert go.wait(60)
        yield from ((index, 7.0) for index in indices)

    answers: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(values.fetch([key("x")], slow, NEVER).values)) for _ in range(8)
    ]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    while values.stats().joined < 7:
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join(60)
    assert answers == [[7.0]] * 8
    assert computed == [0]
    assert values.stats().misses == 1


def test_who_waits_takes_over_when_the_other_gives_up() -> None:
    values, begun, go = cache(), threading.Event(), threading.Event()

    def gives_up(indices: list[int]) -> Iterable[tuple[int, float]]:
        begun.set()
        assert go.wait(60)
        raise DeadlineError("over")
        yield 0, 0.0

    def first() -> None:
        with pytest.raises(DeadlineError):
            values.fetch([key("x")], gives_up, NEVER)

    owner = threading.Thread(target=first)
    owner.start()
    assert begun.wait(60)
    threading.Timer(0.05, go.set).start()
    taken = values.fetch([key("x")], lengths(["xx"]), NEVER)
    owner.join(60)
    assert taken.values == [2.0]
    assert (taken.hits, taken.misses) == (0, 1)


def test_waiting_for_another_ends_at_the_deadline() -> None:
    values, begun, go = cache(), threading.Event(), threading.Event()

    def slow(indices: list[int]) -> Iterable[tuple[int, float]]:
        begun.set()
        assert go.wait(60)
        yield 0, 1.0

    owner = threading.Thread(target=lambda: values.fetch([key("x")], slow, RequestOptions(Deadline.after(0.01))))
    owner.start()
    assert begun.wait(60)
    with pytest.raises(DeadlineError):
        values.fetch([key("x")], lengths(["x"]), RequestOptions(Deadline.after(0.02)))
    go.set()
    owner.join(60)


@pytest.mark.parametrize("patient", [NEVER, RequestOptions(Deadline.after(0), Priority.BATCH)])
def test_a_request_does_not_wait_for_one_that_may_be_far_behind_it(patient: RequestOptions) -> None:
    values, begun, go = cache(), threading.Event(), threading.Event()
    late: list[list[float]] = []

    def slow(indices: list[int]) -> Iterable[tuple[int, float]]:
        begun.set()
        assert go.wait(60)
        yield 0, 1.0

    owner = threading.Thread(target=lambda: late.append(values.fetch([key("x")], slow, patient).values))
    owner.start()
    assert begun.wait(60)
    own = values.fetch([key("x")], lengths(["xx"]), RequestOptions(Deadline.after(5)))
    assert (own.values, own.misses) == ([2.0], 1)
    go.set()
    owner.join(60)
    assert late == [[1.0]]
    assert values.fetch([key("x")], lengths([]), NEVER).hits == 1


def test_who_waits_for_a_failure_tries_for_himself() -> None:
    """An error names the text of the request that waited, not that of the request that computed."""
    values, begun, go = cache(), threading.Event(), threading.Event()

    def theirs(indices: list[int]) -> Iterable[tuple[int, Any]]:
        begun.set()
        assert go.wait(60)
        yield from ((index, InferenceError(f"one {index}")) for index in indices)

    def mine(indices: list[int]) -> list[tuple[int, Any]]:
        return [(index, 1.0 if index == 0 else InferenceError(f"two {index}")) for index in indices]

    def first() -> None:
        with pytest.raises(InferenceError, match="one 0"):
            values.fetch([key("x")], theirs, NEVER)

    owner = threading.Thread(target=first)
    owner.start()
    assert begun.wait(60)
    threading.Timer(0.05, go.set).start()
    with pytest.raises(InferenceError, match="two 1"):
        values.fetch([key("y"), key("x")], mine, NEVER)
    owner.join(60)


def test_one_failure_leaves_its_neighbours_and_is_tried_again() -> None:
    values = cache()

    def partly(indices: list[int]) -> Iterable[tuple[int, float | Exception]]:
        for index in indices:
            yield index, InferenceError("bad") if index == 1 else float(index)

    keys = [key("a"), key("b"), key("c")]
    with pytest.raises(InferenceError, match="bad"):
        values.fetch(keys, partly, NEVER)
    assert values.fetch([keys[0], keys[2]], lengths(["", ""]), NEVER).values == [0.0, 2.0]
    assert values.fetch([keys[1]], lengths(["bbbb"]), NEVER).values == [4.0]


def test_what_was_computed_before_a_deadline_is_kept() -> None:
    values = cache()

    def half(indices: list[int]) -> Iterable[tuple[int, float]]:
        yield 0, 1.0
        raise DeadlineError("over")

    with pytest.raises(DeadlineError):
        values.fetch([key("a"), key("b")], half, NEVER)
    assert values.fetch([key("a")], lengths(["wrong"]), NEVER).values == [1.0]


def test_a_model_that_forgets_a_value_is_an_error_not_a_hang() -> None:
    values = cache()
    with pytest.raises(RuntimeError, match="1 of 1"):
        values.fetch([key("a")], lambda indices: [], NEVER)
    assert values.fetch([key("a")], lengths(["a"]), NEVER).values == [1.0]


@pytest.mark.parametrize("max_bytes", [0, 100])
def test_a_cache_too_small_for_anything_still_answers(max_bytes: int) -> None:
    values, computed = cache(max_bytes), []
    for _ in range(2):
        assert values.fetch([key("a")], lengths(["a"], computed), NEVER).values == [1.0]
    assert computed == ["a", "a"]
    assert values.stats().entries == 0


def test_the_bytes_that_are_counted_are_the_memory_that_is_taken() -> None:
    limit = 1 << 20
    caches = Caches.of(limit)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, 8000, 500):
            keys = [key(f"{start + index}") for index in range(500)]
            caches.scores.fetch(keys, lambda indices: ((index, index * 0.37) for index in indices), NEVER)
            caches.vectors.fetch(keys, lambda indices: ((index, np.zeros(64, np.float32)) for index in indices), NEVER)
            del keys
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    stats = [caches.scores.stats(), caches.vectors.stats()]
    assert all(fact.evictions for fact in stats)
    counted = sum(fact.bytes for fact in stats)
    assert counted <= limit
    # Dictionaries double as they grow, so the count is an average.
    assert taken == pytest.approx(counted, rel=0.3)


def test_the_least_recently_used_leaves_first() -> None:
    values = cache(3 * (ENTRY_BYTES + 24))
    for name in ("a", "b", "c"):
        values.fetch([key(name)], lengths([name]), NEVER)
    values.fetch([key("a")], lengths(["wrong"]), NEVER)
    values.fetch([key("d")], lengths(["d"]), NEVER)
    computed: list[str] = []
    values.fetch([key("a"), key("b")], lengths(["a", "b"], computed), NEVER)
    assert computed == ["b"]
