"""A job: the inputs of one request for one model, as they wait, run and end."""

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from serving.errors import NotReadyError
from serving.runtime.deadline import Deadline
from serving.runtime.items import Item, Priority, ScoringModel

WAKE_EACH = 16
"""Ended inputs after which the thread that waits for a job is woken, so that it can cache their outcomes."""

_LOOK, _LEFT = object(), object()
"""Signals to the thread that waits for a job's outcomes: there are new ones, or there will be no more."""


class JobQueue(Protocol):
    """The part of the scheduler that a job calls."""

    def enqueue(self, job: "Job", items: Sequence[Item]) -> None:
        """Appends inputs to a job and makes them wait for a runner."""

    def forget(self, job: "Job") -> None:
        """Takes the waiting inputs of a job out of the queue."""


class Job:
    """The inputs of one request for one model. Iteration gives the index and the outcome of each input as it ends.

    The iterating thread is woken when every input has ended, at every WAKE_EACH of them, when one has failed, or when
    the deadline has passed. To wake it at each input would take the processor from the runners.
    """

    def __init__(self, scheduler: JobQueue, model: ScoringModel, deadline: Deadline, priority: Priority) -> None:
        self.model, self.deadline, self.priority = model, deadline, priority
        self.waiting: deque[int] = deque()
        """Indices of inputs that no runner has taken. The scheduler's lock guards it, `tokens` and `queued`."""
        self.tokens = 0
        """Tokens of the waiting inputs."""
        self.queued = False
        """Whether the scheduler's queue holds this job."""
        self.items: list[Item] = []
        self._scheduler = scheduler
        self._outcomes: deque[tuple[int, Any]] = deque()
        self._ended = self._taken = 0
        self._wake: queue.SimpleQueue[object] = queue.SimpleQueue()

    def add(self, items: Sequence[Item]) -> None:
        """Appends inputs to the job; their indices continue those of the inputs before.

        Raises:
            NotReadyError: the scheduler was stopped.
        """
        self._scheduler.enqueue(self, items)

    def end(self, index: int, outcome: Any) -> None:
        """Records the outcome of the input with this index; the calling runner holds the scheduler's lock."""
        self._outcomes.append((index, outcome))
        self._ended += 1
        if self._ended == len(self.items) or self._ended % WAKE_EACH == 0 or isinstance(outcome, Exception):
            self._wake.put(_LOOK)

    def leave(self) -> None:
        """Takes the waiting inputs out of the queue and ends the iteration."""
        self._scheduler.forget(self)
        self._wake.put(_LEFT)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yields (index, outcome) of each input that was added; an input that failed has its exception as outcome.

        Raises:
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
            NotReadyError: the scheduler was stopped.
        """
        while self._taken < len(self.items):
            if self._outcomes:
                yield from self.ended()
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

    def ended(self) -> Iterator[tuple[int, Any]]:
        """Yields (index, outcome) of the inputs that have ended and were not yet taken; waits for none."""
        while self._outcomes:
            self._taken += 1
            yield self._outcomes.popleft()

    def __enter__(self) -> "Job":
        self.deadline.on_cancel(self.leave)
        return self

    def __exit__(self, *_: object) -> None:
        self.deadline.forget(self.leave)
        self._scheduler.forget(self)
