"""Questions of requests put to the live release and to one on trial, at batch class, to compare the two.

    request ─► its question, drawn ─► queue ─► one thread: live and trial, in random order ─► Pair

Nothing waits for a copy, and no client decides anything by it: both releases get the same question, right after each
other, with COPY_S each. A copy that comes while online inputs wait, while too many copies do, or beyond the budget is
dropped and counted. Copies stay out of the caches: an online request would else wait for a score that a copy is
computing at its leisure, and what is asked often would leave for what nobody asked for.

A copy of a request that was late, or on which a model failed, is urgent: it is taken on a busy service too, within the
budget. After a failure only the other release is asked, which tells whether the text or the model is at fault.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from serving.errors import BusyError, ClientGoneError, DeadlineError, NotReadyError, ServingError
from serving.rollout import pairs
from serving.rollout.budget import CopyBudget
from serving.rollout.comparison import ComparedRequest, Grades, compare
from serving.rollout.pairs import Attempt, Ending, Pair
from serving.rollout.trials import Kind
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline, RunClock
from serving.runtime.items import Priority
from serving.runtime.scheduler import Scheduler
from serving.scoring.searcher import Searcher

WAITING = 32
"""Copies that wait at most."""
MAX_CHARS = 1 << 20
"""Most characters of a request that is copied; 32 of these are all that copies hold."""
BUSY_S = 0.1
"""When an online input that came now would wait longer than this, copies are dropped."""

Side = Literal["live", "trial"]
End = Literal["compared", "dropped", "failed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShadowCopy:
    """A request's question, and the two releases to put it to."""

    kind: Kind
    number: int
    """The trial's number."""
    question: ComparedRequest
    live: Searcher
    trial: Searcher
    failed: Side | None = None
    """The release whose model failed on the request; only the other one is asked."""
    late: bool = False
    """Whether the request was not answered in the time that the service gives by itself."""

    @property
    def urgent(self) -> bool:
        """Whether to ask on a busy service too: it may be the canary that makes it busy."""
        return self.late or self.failed is not None


Finished = Callable[[ShadowCopy, End, Pair | None], None]


class ShadowQueue:
    """The queue of copies and the one thread that asks them, which starts with the first."""

    def __init__(self, scheduler: Scheduler, grades: Grades, finished: Finished) -> None:
        """
        Args:
            finished: takes how each copy ended, with the pair unless it was dropped; called from any thread, must not
                block.
        """
        self._scheduler, self._grades, self._finished = scheduler, grades, finished
        self._budget = CopyBudget(scheduler.runners)
        self._queue: queue.Queue[ShadowCopy | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._random = random.Random()
        self._deadline = Deadline.never()
        """Deadline of the present attempt."""

    def offer(self, copy: ShadowCopy) -> None:
        """Takes a copy, or drops it; never blocks."""
        if copy.question.chars > MAX_CHARS or not self._affordable(copy):
            self._finished(copy, "dropped", None)
            return
        with self._lock:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(copy)
        except queue.Full:
            self._finished(copy, "dropped", None)

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
                self._drop_one()
        thread.join(timeout=5)

    def _drop_one(self) -> None:
        try:
            copy = self._queue.get_nowait()
        except queue.Empty:
            return
        self._queue.task_done()
        if copy is not None:
            self._finished(copy, "dropped", None)

    def _affordable(self, copy: ShadowCopy) -> bool:
        return self._budget.allows(urgent=copy.urgent) and (copy.urgent or self._scheduler.wait_s() <= BUSY_S)

    def _work(self) -> None:
        while True:
            copy = self._queue.get()
            try:
                if copy is None:
                    return
                self._ask(copy)
            except Exception:
                log.exception("a copy of a request could not be counted")
            finally:
                self._queue.task_done()
                del copy  # The releases that it names may be gone before the next one comes.

    def _ask(self, copy: ShadowCopy) -> None:
        if self._stopped or not self._affordable(copy):
            self._finished(copy, "dropped", None)
            return
        attempts: dict[Side, Attempt] = {}
        sides: list[Side] = ["live", "trial"]
        self._random.shuffle(sides)  # The second one may find the processor's caches warm.
        for side in sides:
            attempts[side] = Attempt("failed") if side == copy.failed else self._attempt(copy, side)
        pair = Pair(attempts["live"], attempts["trial"])
        if not pair.answered:
            self._finished(copy, "failed", pair)
            return
        assert pair.live.answer is not None
        assert pair.trial.answer is not None
        comparison = compare(copy.question, pair.trial.answer, pair.live.answer, self._grades)
        self._finished(copy, "compared", Pair(pair.live, pair.trial, comparison))

    def _attempt(self, copy: ShadowCopy, side: Side) -> Attempt:
        searcher = copy.live if side == "live" else copy.trial
        runs = RunClock()
        deadline = self._deadline = Deadline.after(pairs.COPY_S, runs)
        if self._stopped:  # A stop before that line cancelled another deadline.
            return Attempt("stopped")
        began = time.perf_counter()
        answer = None
        ending: Ending = "answered"
        try:
            answer = copy.question.ask(searcher, RequestOptions(deadline, Priority.BATCH, remember=False))
        except DeadlineError:
            ending = "late"
        except (ClientGoneError, NotReadyError, BusyError):
            ending = "stopped"
        except Exception as error:
            if not isinstance(error, ServingError):
                log.exception("release %s: failed on a copy of a request", searcher.release[:12])
            ending = "failed"
        run_s = runs.seconds
        self._budget.charge(run_s)
        return Attempt(ending, time.perf_counter() - began, run_s, answer)
