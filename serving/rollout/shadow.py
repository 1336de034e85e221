"""Requests put to another release after their answers went out, at batch class, to see what it would have said.

Nothing waits for a copy. One that comes while online inputs wait, or while too many copies do, is dropped and counted;
one that fails is counted. A request whose client forbade to keep it is never copied. Copies stay out of the caches: an
online request would else wait for a score that a copy is computing at its leisure, and what is asked often would leave
for what nobody asked for.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from serving.errors import ServingError
from serving.rollout.comparison import ComparedRequest, Comparison, ComparisonResult, Grades, compare
from serving.rollout.trials import Kind
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.items import Priority
from serving.runtime.scheduler import Scheduler
from serving.scoring.searcher import Searcher

WAITING = 32
"""Copies that wait at most."""
MAX_CHARS = 1 << 20
"""Most characters of a request that is copied; 32 of these are all that copies hold."""
BUSY_S = 0.1
"""When an online input that came now would wait longer than this, copies are dropped."""
COPY_S = 30.0

End = Literal["compared", "dropped", "failed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShadowCopy:
    """A request that was answered, and the release to put it to."""

    kind: Kind
    """canary: the canary answered, and the live release is asked; shadow: the shadow is."""
    number: int
    """The trial's number."""
    question: ComparedRequest
    answered: ComparisonResult
    other: Searcher


Told = Callable[[ShadowCopy, End, Comparison | None], None]


class ShadowQueue:
    """The queue of copies and the one thread that asks them, which starts with the first."""

    def __init__(self, scheduler: Scheduler, grades: Grades, told: Told) -> None:
        """
        Args:
            told: how each copy ended; called from any thread, must not block.
        """
        self._scheduler, self._grades, self._told = scheduler, grades, told
        self._queue: queue.Queue[ShadowCopy | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._deadline = Deadline.never()
        """Deadline of the present copy."""

    def offer(self, copy: ShadowCopy) -> None:
        """Takes a copy, or drops it; never blocks."""
        if copy.question.chars > MAX_CHARS or self._scheduler.wait_s() > BUSY_S:
            self._told(copy, "dropped", None)
            return
        with self._lock:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(copy)
        except queue.Full:
            self._told(copy, "dropped", None)

    def settle(self) -> None:
        """Waits until all copies that were taken have ended."""
        self._queue.join()

    def stop(self) -> None:
        """Drops what waits, and ends the thread after its present copy."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        self._deadline.cancel()
        if thread is None:
            return
        while thread.is_alive():
            try:
                self._queue.put_nowait(None)
                break
            except queue.Full:
                self._dropped_one()
        thread.join(timeout=5)

    def _dropped_one(self) -> None:
        try:
            copy = self._queue.get_nowait()
        except queue.Empty:
            return
        self._queue.task_done()
        if copy is not None:
            self._told(copy, "dropped", None)

    def _work(self) -> None:
        while True:
            copy = self._queue.get()
            try:
                if copy is None:
                    return
                self._ask(copy)
            except Exception:
                log.exception("a copy of a request could not be told of")
            finally:
                self._queue.task_done()
                del copy  # The release that it names may be gone before the next one comes.

    def _ask(self, copy: ShadowCopy) -> None:
        self._deadline = Deadline.after(COPY_S)  # Before the look, so that a stop between the two cancels it.
        if self._stopped or self._scheduler.wait_s() > BUSY_S:
            self._told(copy, "dropped", None)
            return
        try:
            found = copy.question.ask(copy.other, RequestOptions(self._deadline, Priority.BATCH, remember=False))
        except Exception as error:
            if not isinstance(error, ServingError):
                log.exception("release %s: failed on a copy of a request", copy.other.release[:12])
            self._told(copy, "failed", None)
            return
        self._told(copy, "compared", compare(copy.question, copy.answered, found, self._grades))
