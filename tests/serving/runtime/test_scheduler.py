"""The queue and its runners, with models that do as they are told."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ClientGoneError, DeadlineError, InferenceError, NotReadyError
from serving.runtime.deadline import Deadline
from serving.runtime.items import Item, Priority, Throughput
from serving.runtime.job import WAKE_EACH, Job
from serving.runtime.scheduler import BATCH_SHARE, Scheduler

NEVER = Deadline.never()


def item(name: int, tokens: int = 1) -> Item:
    return Item([name] * tokens)


class Gate:
    """A model that notes what it runs; it waits at the first run until the test has filled the queue."""

    def __init__(self, run_tokens: int = 0, bucket_tokens: int = 1) -> None:
        self.pace = Throughput()
        self.run_tokens, self.bucket_tokens = run_tokens, bucket_tokens
        self.runs: list[list[int]] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self.says: Callable[[int], Any] = float

    def run(self, items: Sequence[Item]) -> list[Any]:
        self.runs.append([encoded.ids[0] for encoded in items])
        self.entered.set()
        assert self.opened.wait(60)
        return [self.says(encoded.ids[0]) for encoded in items]


class Queue:
    """A scheduler of one runner that is held, so that a test can fill the queue and then see the order."""

    def __init__(self, model: Gate) -> None:
        self.scheduler, self.model, self.stack = Scheduler(1), model, ExitStack()
        self.jobs = [self.put([item(-1)])]
        assert model.entered.wait(60)

    def put(self, items: Sequence[Item], deadline: Deadline = NEVER, priority: Priority = Priority.ONLINE) -> Job:
        job = self.stack.enter_context(self.scheduler.job(self.model, deadline, priority))
        job.add(items)
        return job

    def order(self, *jobs: Job) -> list[int]:
        """The items that were run, in order, once these jobs are done."""
        self.model.opened.set()
        for job in jobs:
            list(job)
        return [name for run in self.model.runs[1:] for name in run]


@pytest.fixture
def held() -> Iterator[Queue]:
    queue = Queue(Gate())
    yield queue
    queue.model.opened.set()
    queue.stack.close()
    queue.scheduler.stop()


def batching(run_tokens: int, bucket_tokens: int) -> Queue:
    return Queue(Gate(run_tokens, bucket_tokens))


# Order.


def test_the_earlier_deadline_goes_first_and_of_equal_ones_the_earlier_arrival(held: Queue) -> None:
    late, soon = Deadline.after(60), Deadline.after(30)
    jobs = [held.put([item(1), item(2)], late), held.put([item(3), item(4)], soon), held.put([item(5)], late)]
    jobs += [held.put([item(6)]), held.put([item(7)], Deadline(soon.until, 30))]
    assert held.order(*jobs) == [3, 4, 7, 1, 2, 5, 6]


def test_online_goes_before_batch_however_late_its_deadline(held: Queue) -> None:
    batch = held.put([item(1)], Deadline.after(5), Priority.BATCH)
    online = held.put([item(2), item(3)], Deadline.after(50))
    assert held.order(online, batch) == [2, 3, 1]


def test_a_probe_goes_before_all_that_waits(held: Queue) -> None:
    online = held.put([item(1), item(2)], Deadline.after(5))
    probe = held.put([item(3)], Deadline.after(50), Priority.PROBE)
    assert held.order(online, probe) == [3, 1, 2]


def test_what_has_ended_is_given_before_the_whole_job_has() -> None:
    class Stuck(Gate):
        def run(self, items: Sequence[Item]) -> list[Any]:
            assert items[0].ids[0] < WAKE_EACH or self.opened.wait(60)
            return [encoded.ids[0] for encoded in items]

    model, scheduler = Stuck(), Scheduler(1)
    with scheduler.job(model, Deadline.after(10)) as job:
        job.add([item(number) for number in range(2 * WAKE_EACH)])
        outcomes = iter(job)
        assert [next(outcomes)[1] for _ in range(WAKE_EACH)] == list(range(WAKE_EACH))
        model.opened.set()
        assert [outcome for _, outcome in outcomes] == list(range(WAKE_EACH, 2 * WAKE_EACH))
    scheduler.stop()


def test_batch_moves_under_any_load_at_its_share(held: Queue) -> None:
    batch = held.put([item(-2)] * 5, NEVER, Priority.BATCH)
    online = held.put([item(index) for index in range(4 * BATCH_SHARE)])
    order = held.order(online, batch)
    indices = [index for index, name in enumerate(order) if name == -2]
    assert indices == [BATCH_SHARE * turn - 1 for turn in range(1, 5)] + [4 * BATCH_SHARE + 4]


def test_batch_has_all_runners_when_nothing_else_waits(held: Queue) -> None:
    assert held.order(held.put([item(1), item(2)], NEVER, Priority.BATCH)) == [1, 2]


def test_inputs_that_are_added_later_keep_their_jobs_urgency(held: Queue) -> None:
    first = held.put([item(1)], Deadline.after(10))
    second = held.put([item(2)], Deadline.after(20))
    first.add([item(3)])
    assert held.order(first, second) == [1, 3, 2]
    first.add([item(4)])
    assert list(first) == [(2, 4.0)]


requests = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([Priority.ONLINE, Priority.BATCH]), st.integers(1, 4)),
    min_size=1,
    max_size=12,
)


@given(requests)
@settings(deadline=None, max_examples=40)
def test_every_input_is_run_once_in_the_order_of_a_sort(drawn_jobs: list[tuple[int, Priority, int]]) -> None:
    queue = Queue(Gate())
    now = time.monotonic() + 100
    jobs, expected = [], []
    for number, (seconds, priority, count) in enumerate(drawn_jobs):
        jobs.append(queue.put([item(number)] * count, Deadline(now + seconds, 1), priority))
        expected += [(priority, seconds, number)] * count
    order = queue.order(*jobs)
    queue.stack.close()
    queue.scheduler.stop()
    assert sorted(order) == sorted(number for _, _, number in expected)
    online = [number for _, _, number in sorted(expected) if drawn_jobs[number][1] is Priority.ONLINE]
    batch = [number for _, _, number in sorted(expected) if drawn_jobs[number][1] is Priority.BATCH]
    assert [number for number in order if drawn_jobs[number][1] is Priority.ONLINE] == online
    assert [number for number in order if drawn_jobs[number][1] is Priority.BATCH] == batch
    if len(online) < BATCH_SHARE:
        assert order == online + batch


# Who leaves.


def test_a_client_that_leaves_frees_its_inputs_at_once(held: Queue) -> None:
    deadline = Deadline.after(60)
    gone, stays = held.put([item(1, 7)] * 100, deadline), held.put([item(2)])
    assert (held.scheduler.stats().items, held.scheduler.stats().tokens) == (101, 701)
    deadline.cancel()
    stats = held.scheduler.stats()
    assert (stats.items, stats.tokens, stats.cancelled) == (1, 1, 100)
    with pytest.raises(ClientGoneError):
        list(gone)
    assert held.order(stays) == [2]


def test_expired_inputs_are_dropped_before_work(held: Queue) -> None:
    late = held.put([item(1)] * 3, Deadline.after(0.05))
    with pytest.raises(DeadlineError):
        list(late)
    assert held.order(held.put([item(2)])) == [2]
    assert held.scheduler.stats().expired == 3


def test_leaving_a_job_early_takes_back_the_rest(held: Queue) -> None:
    with held.scheduler.job(held.model, NEVER) as job:
        job.add([item(1)] * 5)
    assert held.scheduler.stats().items == 0
    assert held.order(held.put([item(2)])) == [2]


def test_what_was_done_before_a_deadline_is_given(held: Queue) -> None:
    job, ended = held.put([item(3), item(4)], Deadline.after(2)), threading.Event()

    def says(name: int) -> float:
        assert name != 4 or ended.wait(60)
        return float(name)

    held.model.says = says
    held.model.opened.set()
    results: list[Any] = []
    with pytest.raises(DeadlineError):
        results.extend(job)  # Which keeps what came before the error.
    ended.set()
    assert results == [(0, 3.0)]


def test_a_job_of_a_client_that_has_left_already_waits_for_nothing(held: Queue) -> None:
    deadline = Deadline.after(60)
    deadline.cancel()
    with pytest.raises(ClientGoneError):
        list(held.put([item(1)], deadline))
    assert held.scheduler.stats().items == 0


# What goes wrong.


def test_a_model_that_raises_fails_the_inputs_of_that_run_only(held: Queue) -> None:
    held.model.says = lambda name: 1 / name
    job, other = held.put([item(1), item(0), item(2)]), held.put([item(4)])
    held.model.opened.set()
    outcomes = dict(job)
    assert (outcomes[0], outcomes[2]) == (1.0, 0.5)
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert dict(other) == {0: 0.25}
    assert held.scheduler.stats().replaced == 0


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_runner_that_ends_is_replaced_and_fails_its_run_only(held: Queue, end: Any, caplog: Any) -> None:
    def says(name: int) -> float:
        if name == 0:
            raise end
        return float(name)

    held.model.says = says
    job = held.put([item(1), item(0), item(2)], Deadline.after(20))
    held.model.opened.set()
    outcomes = dict(job)
    assert (outcomes[0], outcomes[2]) == (1.0, 2.0)
    assert isinstance(outcomes[1], InferenceError)
    stats = held.scheduler.stats()
    assert (stats.replaced, stats.items) == (1, 0)
    assert "a runner thread ended" in caplog.text
    assert held.scheduler.stalled_s() == 0.0


def test_a_runner_that_ends_in_our_own_code_is_replaced_too(held: Queue, monkeypatch: Any) -> None:
    real, failed = held.scheduler._take, []

    def take() -> Any:
        if not failed:
            failed.append(1)
            raise MemoryError
        return real()

    monkeypatch.setattr(held.scheduler, "_take", take)
    assert held.order(held.put([item(1)], Deadline.after(20))) == [1]
    assert held.scheduler.stats().replaced == 1


def test_a_stalled_run_is_told_and_its_request_ends_at_its_deadline() -> None:
    scheduler, model = Scheduler(2), Gate()
    while not model.entered.is_set():  # A busy machine may not begin a run within a deadline.
        with scheduler.job(model, Deadline.after(0.1)) as stuck:
            stuck.add([item(1)])
            with pytest.raises(DeadlineError):
                list(stuck)
    assert scheduler.stalled_s() > 0
    free = Gate()
    free.opened.set()
    with scheduler.job(free, Deadline.after(60)) as job:  # The other runner goes on.
        job.add([item(2), item(3)])
        assert dict(job) == {0: 2.0, 1: 3.0}
    model.opened.set()
    while scheduler.stalled_s():
        time.sleep(0.001)
    scheduler.stop()


def test_a_model_that_gives_too_few_outputs_is_an_error(held: Queue) -> None:
    held.model.run = lambda items: []  # type: ignore[method-assign]
    held.model.opened.set()
    ((_, outcome),) = held.put([item(1)])
    assert "0 outputs for 1 inputs" in str(outcome)


def test_stopping_ends_who_waits_and_takes_no_more(held: Queue) -> None:
    job = held.put([item(1)] * 3)
    threading.Timer(0.05, held.model.opened.set).start()
    held.scheduler.stop()
    held.scheduler.stop()
    with pytest.raises(NotReadyError):
        list(job)
    with pytest.raises(NotReadyError):
        held.put([item(2)])


def test_no_runner_keeps_a_model_that_nobody_else_has() -> None:
    scheduler, model = Scheduler(2), Gate()
    model.opened.set()
    with scheduler.job(model, NEVER) as job:
        job.add([item(index) for index in range(10)])
        assert len(list(job)) == 10
    seen = weakref.ref(model)
    del model, job
    for _ in range(200):
        gc.collect()
        if seen() is None:
            break
        time.sleep(0.01)
    assert seen() is None
    scheduler.stop()


# Batches, as on a GPU; the device is played by a model that waits.


def test_a_batch_forms_of_what_came_while_the_device_worked() -> None:
    queue = batching(100, 1)
    jobs = [queue.put([item(1), item(2)]), queue.put([item(3)])]
    queue.order(*jobs)
    assert queue.model.runs == [[-1], [1, 2, 3]]
    queue.scheduler.stop()


def test_a_batch_takes_its_own_length_first_then_shorter_ones_and_never_longer_ones() -> None:
    queue = batching(run_tokens=64, bucket_tokens=16)
    lengths = {1: 16, 2: 33, 3: 10, 4: 5, 5: 15, 6: 48}
    jobs = [queue.put([item(name, tokens)]) for name, tokens in lengths.items()]
    queue.order(*jobs)
    # 1 opens a run 16 wide, which has room for 4; 2 and 6 are longer, and alone in runs 48 wide.
    assert queue.model.runs[1:] == [[1, 3, 4, 5], [2], [6]]
    queue.scheduler.stop()


def test_shorter_inputs_fill_a_run_the_longest_first() -> None:
    queue = batching(run_tokens=144, bucket_tokens=16)
    jobs = [queue.put([item(name, tokens)]) for name, tokens in {1: 48, 2: 5, 3: 20, 4: 40, 5: 3}.items()]
    queue.order(*jobs)
    assert queue.model.runs[1:] == [[1, 4, 3], [2, 5]]
    queue.scheduler.stop()


def test_a_batch_never_mixes_models() -> None:
    queue = batching(100, 1)
    other = Gate(100, 1)
    other.opened.set()
    with queue.scheduler.job(other, NEVER) as job:
        mine = queue.put([item(1)])
        job.add([item(7), item(8)])
        later = queue.put([item(2)])
        queue.order(mine, later, job)
    assert queue.model.runs == [[-1], [1, 2]]
    assert other.runs == [[7, 8]]
    queue.scheduler.stop()


def test_of_a_failing_batch_each_is_run_alone_and_only_the_bad_one_fails() -> None:
    queue = batching(100, 1)
    queue.model.says = lambda name: 1 / name
    jobs = [queue.put([item(1), item(0)]), queue.put([item(2)])]
    queue.model.opened.set()
    first, second = dict(jobs[0]), dict(jobs[1])
    assert (first[0], second[0]) == (1.0, 0.5)
    assert isinstance(first[1], ZeroDivisionError)
    assert queue.model.runs[1:] == [[1, 0, 2], [1], [0], [2]]
    queue.scheduler.stop()


@given(
    st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=10), min_size=1, max_size=8),
    st.integers(16, 500),
    st.sampled_from([1, 8, 16]),
)
@settings(deadline=None, max_examples=40)
def test_batches_hold_every_input_once_and_keep_the_budget(jobs: list[list[int]], budget: int, bucket: int) -> None:
    queue = batching(budget, bucket)
    names = iter(range(1000))
    lengths: dict[int, int] = {}
    orders = []
    for tokens in jobs:
        items = [item(next(names), count) for count in tokens]
        lengths |= {encoded.ids[0]: len(encoded.ids) for encoded in items}
        orders.append(queue.put(items))
    queue.order(*orders)
    runs = queue.model.runs[1:]
    queue.scheduler.stop()
    assert sorted(name for run in runs for name in run) == sorted(lengths)
    for run in runs:
        width = -(-max(lengths[name] for name in run) // bucket) * bucket
        assert len(run) == 1 or width * len(run) <= budget


# Pace and waiting.


def test_the_pace_is_that_of_the_latest_runs() -> None:
    pace = Throughput()
    assert (pace.tokens_per_s, pace.seconds(1000)) == (None, 0.0)
    for _ in range(500):
        pace.ran(100, 1.0)
    assert pace.tokens_per_s == pytest.approx(100)
    for _ in range(500):
        pace.ran(400, 1.0)
    assert pace.tokens_per_s == pytest.approx(400, rel=1e-3)
    assert pace.seconds(800) == pytest.approx(2.0, rel=1e-3)


def test_the_wait_is_what_waits_by_each_models_pace_over_the_runners(held: Queue) -> None:
    fast, slow = Gate(), Gate()
    fast.pace.ran(1000, 1.0)
    slow.pace.ran(10, 1.0)
    with ExitStack() as stack:
        for model, tokens in ((fast, 500), (slow, 20)):
            stack.enter_context(held.scheduler.job(model, NEVER)).add([item(1, tokens)])
        stack.enter_context(held.scheduler.job(slow, NEVER, Priority.BATCH)).add([item(1, 999)])
        assert held.scheduler.wait_s() == pytest.approx(0.5 + 2.0)
        held.scheduler.runners = 2
        assert held.scheduler.wait_s() == pytest.approx(1.25)
    assert held.scheduler.wait_s() == 0


def test_what_is_due_later_does_not_make_an_online_input_wait(held: Queue) -> None:
    model, now = Gate(), time.monotonic()
    model.pace.ran(10, 1.0)
    with ExitStack() as stack:
        for seconds, tokens in ((1, 10), (20, 100), (20, 200)):
            stack.enter_context(held.scheduler.job(model, Deadline.after(seconds))).add([item(1, tokens)])
        assert held.scheduler.wait_s(now + 0.5) == 0
        assert held.scheduler.wait_s(now + 10) == pytest.approx(1)
        assert held.scheduler.wait_s(now + 30) == held.scheduler.wait_s() == pytest.approx(31)
