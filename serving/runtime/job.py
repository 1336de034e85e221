"""A job: the inputs of one request for one model, as they wait, run and end."""

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from serving.errors import NotReadyError
from serving.runtime.deadline import Deadline
from serving.runtime.items import Item, Priority, ScoringModel

WAKE_EACH = 16
"""A waiting request is woken each time that this many inputs of its job have ended, so it can cache their outcomes."""

_LOOK, _LEFT = object(), object()
"""Signals to the thread that waits for a job's outcomes: look at them, or there will be no more."""


class JobQueue(Protocol):
    """The part of the scheduler that a job calls."""

    def enqueue(self, job: "Job", items: Sequence[Item]) -> None:
        """Appends inputs to a job and makes them wait for a runner."""

    def forget(self, job: "Job") -> None:
        """Takes the waiting inputs of a job out of the queue."""


class Job:
    """Inputs of one request for one model; iterating gives each one's place and outcome.

    Who iterates is woken when all inputs that were added have ended, at every so many of them, when one has failed, or
    when the deadline has passed: a thread that wakes at each input takes the processor from the runners.
    """

    def __init__(self, scheduler: JobQueue, model: ScoringModel, deadline: Deadline, priority: Priority) -> None:
        self.model, self.deadline, self.priority = model, deadline, priority
        self.waiting: deque[int] = deque()
        """Places of inputs that no runner has taken; guarded, as `tokens` and `queued`, by the scheduler's lock."""
        self.tokens = 0
        """Tokens of the waiting inputs."""
        self.queued = False
        self.items: list[Item] = []
        self._scheduler = scheduler
        self._outcomes: deque[tuple[int, Any]] = deque()
        self._ended = self._taken = 0
        self._wake: queue.SimpleQueue[object] = queue.SimpleQueue()

    def add(self, items: Sequence[Item]) -> None:
        """Puts inputs at the end of this job's; their places go on counting.

        Raises:
            NotReadyError: the scheduler was stopped.
        """
        self._scheduler.enqueue(self, items)

    def end(self, number: int, outcome: Any) -> None:
        """Called by a runner, which holds the scheduler's lock."""
        self._outcomes.append((number, outcome))
        self._ended += 1
        if self._ended == len(self.items) or self._ended % WAKE_EACH == 0 or isinstance(outcome, Exception):
            self._wake.put(_LOOK)

    def leave(self) -> None:
        """Takes what waits out of the queue, and wakes who iterates."""
        self._scheduler.forget(self)
        self._wake.put(_LEFT)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """The place and outcome of each input that was added; an Exception is an outcome.

        Raises:
            DeadlineError, ClientGoneError
            NotReadyError: the scheduler was stopped.
        """
        while self._taken < len(self.items):
            if self._outcomes:
                self._taken += 1
                yield self._outcomes.popleft()
                continue
            try:
                woken = self._wake.get(timeout=self.deadline.patience)
            except queue.Empty:
                if not self._outcomes:
                    self.deadline.check()
                continue
            if woken is _LEFT:
                self.deadline.check()
                raise NotReadyError("the service stops; ask again")

    def __enter__(self) -> "Job":
        self.deadline.on_cancel(self.leave)
        return self

    def __exit__(self, *_: object) -> None:
        self.deadline.forget(self.leave)
        self._scheduler.forget(self)
