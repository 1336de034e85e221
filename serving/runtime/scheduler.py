"""The scheduler: one queue for all requests and models, in front of as many runner threads as cores.

    request ─► Job (its inputs for one model) ─► queue: class, deadline, arrival ─► runner threads ─► Job, as they end

Inputs wait, not requests: runners take them one by one, so a long request holds up nobody and the one that must be
answered first goes first. What nobody waits for any more is dropped before it is worked on. On a CPU a run is one
input at its exact length. A model on a GPU says how many tokens a run of it takes: while the device works, inputs
gather here, and the next run takes what fits of one length bucket.

A model that raises fails the inputs of that run only. A runner thread that ends, for whatever reason, fails its run
and is replaced. One that does not come back is told by `stalled_s`: its requests end at their deadlines.
"""

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serving.errors import InferenceError, NotReadyError
from serving.runtime.deadline import Deadline, RunClock
from serving.runtime.items import Item, Priority, ScoringModel, rounded_up
from serving.runtime.job import Job

BATCH_SHARE = 16
"""While both classes wait, one input in this many is taken from the batch class, so batch work never starves."""
GATHERED = 1024
"""Waiting inputs that are looked at to form one run on a GPU."""
RESPAWN_S = 0.1
"""Seconds between the end of a runner and its successor, so that a fault at each start cannot fill a log."""
JOIN_S = 2.0
"""Seconds that the end of a scheduler waits for each of its threads."""
ENDED = "the thread that ran the model ended"
"""The message for inputs whose runner ended; the error is made only then, because errors look for passwords first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """The queue at this moment, and counts since the start."""

    items: int
    """Inputs that wait now."""
    tokens: int
    wait_s: float
    """Estimated wait, in seconds, of an online input that came now and is due last."""
    runs: int
    expired: int
    """Inputs whose time passed while they waited."""
    cancelled: int
    """Inputs that nobody waited for any more."""
    replaced: int
    """Runner threads that ended and were replaced."""


@dataclass(frozen=True, slots=True)
class PresentRun:
    """A run that a model has not come back from yet."""

    model: ScoringModel
    began: float
    """Its start on the clock of `time.monotonic`."""
    clocks: frozenset[RunClock]
    """The clocks of the requests whose inputs it holds, as far as they have one."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


@dataclass(slots=True)
class _Counts:
    runs: int = 0
    expired: int = 0
    cancelled: int = 0
    replaced: int = 0


class Scheduler:
    """The queue and its runner threads, which start with the first input; safe to use from many threads."""

    def __init__(self, runners: int) -> None:
        self.runners = runners
        self._lock = threading.Condition()
        self._classes: dict[Priority, list[tuple[float, int, Job]]] = {priority: [] for priority in Priority}
        """Heaps by deadline and arrival."""
        self._arrivals = itertools.count()
        self._since_batch = 0
        self._counts = _Counts()
        self._threads: list[threading.Thread] = []
        self._running: dict[int, PresentRun] = {}
        """Thread → its present run."""
        self._stopped = False

    def job(self, model: ScoringModel, deadline: Deadline, priority: Priority = Priority.ONLINE) -> Job:
        """A job without inputs yet; use it in a `with`, which takes back what is left at its end."""
        return Job(self, model, deadline, priority)

    def wait_s(self, until: float = math.inf) -> float:
        """Seconds until runners would begin an online input that came now, by the models' measured paces.

        Args:
            until: its deadline, on the clock of `time.monotonic`. What is due later waits behind it.
        """
        with self._lock:
            return self._wait_s(until)

    def stalled_s(self) -> float:
        """Seconds since the oldest present run began; 0 when nothing runs."""
        runs = self.present_runs()
        return runs[0].seconds if runs else 0.0

    def present_runs(self) -> list[PresentRun]:
        """The runs that models have not come back from yet, the oldest first."""
        with self._lock:
            return sorted(self._running.values(), key=lambda run: run.began)

    def stats(self) -> SchedulerStats:
        with self._lock:
            jobs = [job for heap in self._classes.values() for _, _, job in heap]
            counts = self._counts
            return SchedulerStats(
                items=sum(len(job.waiting) for job in jobs),
                tokens=sum(job.tokens for job in jobs),
                wait_s=self._wait_s(),
                runs=counts.runs,
                expired=counts.expired,
                cancelled=counts.cancelled,
                replaced=counts.replaced,
            )

    def stop(self) -> None:
        """Ends the runners after their present runs; who still waits gets NotReadyError. May be called again."""
        with self._lock:
            self._stopped = True
            jobs = [job for heap in self._classes.values() for _, _, job in heap]
            threads = list(self._threads)
            self._lock.notify_all()
        for job in jobs:
            job.leave()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    def enqueue(self, job: Job, items: Sequence[Item]) -> None:
        """Has `items` wait as the next inputs of `job`; see `Job.add`."""
        if not items:
            return
        with self._lock:
            if self._stopped:
                raise NotReadyError("this model was closed; load the release again")
            first = len(job.items)
            job.items.extend(items)
            job.waiting.extend(range(first, len(job.items)))
            job.tokens += sum(len(item.ids) for item in items)
            if not job.queued:
                heapq.heappush(self._classes[job.priority], (job.deadline.until, next(self._arrivals), job))
                job.queued = True
            self._populate()
            self._lock.notify(len(items))
        if job.deadline.over:  # It may have left between its last check and now.
            self.forget(job)

    def forget(self, job: Job) -> None:
        """Takes the waiting inputs of `job` out of the queue."""
        with self._lock:
            self._drop(job)

    def _drop(self, job: Job) -> None:
        if job.deadline.remaining:
            self._counts.cancelled += len(job.waiting)
        else:
            self._counts.expired += len(job.waiting)
        job.waiting.clear()
        job.tokens = 0

    def _wait_s(self, until: float = math.inf) -> float:
        heap = self._classes[Priority.ONLINE]
        return sum(job.model.pace.seconds(job.tokens) for due, _, job in heap if due <= until) / self.runners

    def _populate(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < self.runners:
            thread = threading.Thread(target=self._work, name="runner", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """A runner thread: takes and runs until the scheduler stops."""
        try:
            while self._turn():
                pass
        except BaseException:
            log.exception("a runner thread ended; another takes its place")
            time.sleep(RESPAWN_S)
            with self._lock:
                self._threads.remove(threading.current_thread())
                self._counts.replaced += 1
                if not self._stopped:
                    self._populate()

    def _turn(self) -> bool:
        """Takes one run and does it; False when there will be none. Holds no model afterwards."""
        taken = self._take()
        if not taken:
            return False
        model = taken[0][0].model
        outcomes: dict[int, Any] = {}
        ran = False
        try:
            items = [job.items[number] for job, number in taken]
            outcomes.update(_outcomes(model, items))
            ran = True
        finally:
            with self._lock:
                run = self._running.pop(threading.get_ident())
                for clock in run.clocks:
                    clock.end(threading.get_ident())
                if ran:
                    self._counts.runs += 1
                    model.pace.ran(sum(len(item.ids) for item in items), run.seconds)
                for number, (job, item_number) in enumerate(taken):
                    job.end(item_number, outcomes[number] if number in outcomes else InferenceError(ENDED))
        return True

    def _take(self) -> list[tuple[Job, int]]:
        """The inputs of the next run, which begins now, as soon as there are any; none when the scheduler stops."""
        with self._lock:
            while not self._stopped:
                job = self._next()
                if job is not None:
                    taken = self._gather(job)
                    clocks = frozenset(job.deadline.runs for job, _ in taken if job.deadline.runs is not None)
                    self._running[threading.get_ident()] = PresentRun(job.model, time.monotonic(), clocks)
                    for clock in clocks:
                        clock.begin(threading.get_ident())
                    return taken
                self._lock.wait()
        return []

    def _next(self) -> Job | None:
        """The job whose input is next."""
        if probe := self._first(Priority.PROBE):
            return probe
        online, batch = self._first(Priority.ONLINE), self._first(Priority.BATCH)
        if online is None or batch is None:
            return online or batch
        self._since_batch += 1
        if self._since_batch < BATCH_SHARE:
            return online
        self._since_batch = 0
        return batch

    def _first(self, priority: Priority) -> Job | None:
        """The most urgent job of a class; those that are over, or have nothing waiting, leave the queue."""
        heap = self._classes[priority]
        while heap:
            job = heap[0][2]
            if job.waiting and not job.deadline.over:
                return job
            heapq.heappop(heap)
            job.queued = False
            self._drop(job)
        return None

    def _gather(self, first: Job) -> list[tuple[Job, int]]:
        """The first input of a job, and on a GPU further ones, of any job, that fit into the same run.

        Those of its own length bucket come first, in the order of the queue; then shorter ones, the longest first. A
        longer one would widen the run for all, so it waits to be the first of its own.
        """
        first_number = first.waiting.popleft()
        head = first.items[first_number]
        first.tokens -= len(head.ids)
        taken = [(first, first_number)]
        model, budget = first.model, first.model.run_tokens
        if not budget:
            return taken
        width = rounded_up(len(head.ids), model.bucket_tokens)
        fitting = []
        for number, (job, first_number) in enumerate(itertools.islice(self._waiting(first), GATHERED)):
            length = rounded_up(len(job.items[first_number].ids), model.bucket_tokens)
            if length <= width:
                fitting.append((-length, number, job, first_number))
        fitting.sort(key=lambda entry: entry[:2])
        for _, _, job, first_number in fitting[: max(budget // width - 1, 0)]:
            job.waiting.remove(first_number)
            job.tokens -= len(job.items[first_number].ids)
            taken.append((job, first_number))
        return taken

    def _waiting(self, first: Job) -> Iterator[tuple[Job, int]]:
        """The waiting inputs of the same model: of this class by deadline and arrival, then of the others."""
        for priority in sorted(Priority, key=lambda other: other is not first.priority):
            for _, _, job in sorted(self._classes[priority], key=lambda entry: entry[:2]):
                if job.model is first.model and not job.deadline.over:
                    yield from ((job, number) for number in list(job.waiting))


def _outcomes(model: ScoringModel, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
    """Each input's number with its output or error; after a run of several failed, each is run alone."""
    try:
        outputs = model.run(items)
        if len(outputs) != len(items):
            raise RuntimeError(f"{len(outputs)} outputs for {len(items)} inputs")
    except Exception as error:
        if len(items) == 1:
            yield 0, error
            return
        log.warning("a run of %d inputs failed; running each alone", len(items), exc_info=True)
        for number, item in enumerate(items):
            for _, outcome in _outcomes(model, [item]):
                yield number, outcome
        return
    yield from enumerate(outputs)
