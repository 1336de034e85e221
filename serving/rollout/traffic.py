"""Routing of requests: the live release or a canary answers, and both may be asked the same question afterwards.

    request ─► choose: live or canary ─► answer ─► answered: counted, and perhaps copied (`serving.rollout.shadow`)

The trials stand in a file that all processes follow (`serving.rollout.trials`). A canary that falls out of its
bounds stops answering in this process at once; the file then tells the others, which look at it each second. A trial
whose model does not come back from a run is withdrawn before the worker, which has lost a runner, is replaced.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import text
from pipeline.errors import RelevanceError
from serving.errors import InferenceError
from serving.rollout.arrival import RETRY_S, IncompleteReleaseError
from serving.rollout.canary import CanaryMonitor, Tally
from serving.rollout.comparison import ComparedRequest, Comparison, Grades, grades_of, read_grades
from serving.rollout.lottery import Lottery
from serving.rollout.pairs import Pair
from serving.rollout.shadow import End, ShadowCopy, ShadowQueue, Side
from serving.rollout.trials import Bounds, Canary, Kind, Stamp, Trial, TrialFile, Trials
from serving.runtime.scheduler import PresentRun, Scheduler
from serving.scoring.searcher import Searcher
from serving.settings import Settings

Wish = Literal["always", "never"]
WISHES: tuple[Wish, ...] = ("always", "never")
Variant = Literal["live", "canary"]

Observer = Callable[[Kind, Comparison], None]

STALL_SHARE = 1 / 3
"""A trial is withdrawn when a run of its model takes this share of `Settings.silent_s`; after the whole, the worker is
replaced."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """The release that answers a request."""

    searcher: Searcher
    variant: Variant
    wished: bool = False
    """Whether the client chose the release itself; such a request decides nothing about a canary."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A canary that answers in this process."""

    trial: Canary
    searcher: Searcher
    live: Searcher
    """The live release that the canary is measured against; with another one the counts begin again."""
    monitor: CanaryMonitor


@dataclass(frozen=True, slots=True)
class _Shadow:
    trial: Trial
    searcher: Searcher


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A trial that does not run in this process yet, for a reason that may pass."""

    number: int
    reason: str
    until: float
    """Time of the next attempt, by the monotonic clock."""


class Rollout:
    """The trials as one process runs them; safe to use from many threads."""

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        self.file = TrialFile(settings.workspace)
        self.trials = Trials()
        """The trials as they were last read."""
        self.fault: str | None = None
        """Why the file could not be read or written."""
        self.withdrawals: Counter[Kind] = Counter()
        """By this process."""
        self.copies: Counter[tuple[Kind, End]] = Counter()
        self.requests: Counter[Variant] = Counter()
        """Counted while a canary runs, of all canaries so far."""
        self.errors: Counter[Variant] = Counter()
        self.observer: Observer | None = None
        """Called with every comparison."""
        self._settings = settings
        self._scheduler = scheduler
        self._stalled: PresentRun | None = None
        """A run of a trial's model that was overdue at the last look."""
        grades: Grades = read_grades(Path(settings.judgments)) if settings.judgments else {}
        self._copies = ShadowQueue(scheduler, grades, self._finished)
        self._grades = grades
        self._lock = threading.Lock()
        self._canary: _Running | None = None
        self._shadow: _Shadow | None = None
        self._stamp: Stamp | None = None
        self._lottery = Lottery()
        self._waiting: dict[Kind, _Waiting] = {}
        self._over: dict[int, tuple[Kind, str | None]] = {}
        """Trials that ended here, and why (None: promoted), of which the file does not tell yet."""

    def choose(self, live: Searcher, request_id: str, wish: Wish | None) -> Route:
        """Chooses the release that answers a request for scores.

        Args:
            request_id: in one process, the same one always has the same answer, as long as the trial runs.
            wish: of the client.
        """
        canary = self._canary
        if canary is None or wish == "never":
            return Route(live, "live", wished=wish is not None)
        if wish == "always":
            return Route(canary.searcher, "canary", wished=True)
        if self._lottery.draw(canary.trial, request_id) < canary.trial.share:
            return Route(canary.searcher, "canary")
        return Route(live, "live")

    def answered(
        self,
        choice: Route,
        request_id: str,
        *,
        status: int,
        question: ComparedRequest | None,
        private: bool = False,
        late: bool = False,
    ) -> None:
        """Counts an answered request, and has its question put to both releases where a trial wants that; never blocks.

        A client chooses its deadline, its id and whether it stays, and may wish for a release, so none of these
        decides anything about a canary: a wished or repeated request counts nowhere, and one that was late counts only
        by what the service finds out when it asks both releases itself.

        Args:
            status: of the answer; 500 also where it was answered without a model that failed.
            question: None where the request was refused before any work, or must not be kept.
            private: it must not be kept, so a failure of its model counts without asking the other release.
            late: it was not answered in the time that the service gives by itself, so it is always put to both.
        """
        canary, shadow = self._canary, self._shadow
        on_canary = choice.variant == "canary"
        model_failed = status == InferenceError.status
        if canary is not None and choice.searcher in (canary.searcher, canary.live):
            self.requests[choice.variant] += 1
            self.errors[choice.variant] += status >= 500
            if not choice.wished and self._lottery.first(request_id):
                canary.monitor.requested(canary=on_canary)
                if model_failed and question is not None:
                    self._offer("canary", canary.trial, question, canary.live, canary.searcher,
                                failed="trial" if on_canary else "live")  # fmt: skip
                elif model_failed and private:
                    self._judge(canary, canary.monitor.failed(canary=on_canary))
                elif (
                    on_canary
                    and question is not None
                    and (late or self._is_compared(canary.trial, request_id, question))
                ):
                    self._offer("canary", canary.trial, question, canary.live, canary.searcher)
        if (
            question is not None
            and shadow is not None
            and not on_canary
            and self._lottery.draw(shadow.trial, request_id) < shadow.trial.share
        ):
            self._offer("shadow", shadow.trial, question, choice.searcher, shadow.searcher)

    def end_stalled(self) -> None:
        """Withdraws a trial whose model has not come back from a run for a while.

        A run depends on nothing that a client chooses but a text of bounded length. Where a run of the live release is
        overdue too, the machine may be at fault; where the whole process stood still, the run is gone at the next look.
        """
        overdue = [run for run in self._scheduler.present_runs() if run.seconds > STALL_SHARE * self._settings.silent_s]
        before, self._stalled = self._stalled, overdue[0] if overdue else None
        if not overdue or overdue[0] is not before:
            return
        trials: list[tuple[Kind, _Running | _Shadow | None]] = [("canary", self._canary), ("shadow", self._shadow)]
        for kind, running in trials:
            if running is None:
                continue
            models = running.searcher.models.values()
            if all(any(run.model is model for model in models) for run in overdue):
                seconds = overdue[0].seconds
                self._withdraw(kind, running.trial, f"a run of its model has not come back for {seconds:.0f} s")
                self._synchronise()

    def follow(self, live: Searcher, load: Callable[[str], Searcher]) -> None:
        """Brings this process to what the file says, and the file to what this process found.

        Args:
            load: the release with a fingerprint, perhaps loaded already; raises what is wrong with it.
        """
        self._synchronise()
        self._take_canary(live, load)
        self._take_shadow(live, load)
        if self._over:  # One that could not be loaded.
            self._synchronise()

    def needed(self) -> set[str]:
        """Fingerprints of the releases on trial."""
        return {trial.release for trial in (self.trials.canary, self.trials.shadow) if trial is not None}

    def begin_settings(self, live: Searcher, resolve: Callable[[str], str]) -> None:
        """Begins the trials that the settings name, unless the workspace has such a trial, withdrew that release, or
        it is live.

        Raises:
            RelevanceError: no such release, or the file could not be read or written.
        """
        given = self._settings
        seen = self.file.read()
        not_these = {live.release, seen.withdrawn.release if seen.withdrawn else None}
        if given.canary and seen.canary is None and (release := resolve(given.canary)) not in not_these:
            self.file.begin("canary", Canary(release=release, share=given.canary_share, bounds=Bounds()))
        if given.shadow and seen.shadow is None and (release := resolve(given.shadow)) not in not_these:
            self.file.begin("shadow", Trial(release=release, share=given.shadow_share))

    def share(self, kind: Kind) -> float:
        """Share of the requests that the trial of this kind gets in this process."""
        running = self._canary if kind == "canary" else self._shadow
        return running.trial.share if running is not None else 0.0

    def tally(self) -> Tally | None:
        """Counts of the running canary in this process; None where none runs."""
        canary = self._canary
        return canary.monitor.tally() if canary is not None else None

    def facts(self) -> Mapping[str, Any]:
        """The trials as JSON, with what this process counted."""
        tally = self.tally()
        running = self._running("canary", self.trials.canary), self._running("shadow", self.trials.shadow)
        return {
            "canary": running[0] and {**running[0], "counts": asdict(tally) if tally else None},
            "shadow": running[1],
            "copies": {f"{kind} {end}": count for (kind, end), count in sorted(self.copies.items())},
            "withdrawn": asdict(self.trials.withdrawn) if self.trials.withdrawn else None,
            "fault": self.fault,
        }

    def settle(self) -> None:
        """Waits until all copies that were taken have ended."""
        self._copies.settle()

    def stop(self) -> None:
        self._copies.stop()

    def _running(self, kind: Kind, trial: Trial | None) -> dict[str, Any] | None:
        if trial is None:
            return None
        here = self._canary if kind == "canary" else self._shadow
        runs_here = here is not None and here.trial.number == trial.number
        waiting = self._waiting.get(kind)
        reason = waiting.reason if waiting is not None and waiting.number == trial.number and not runs_here else None
        return {**asdict(trial), "runs_here": runs_here, "waits_for": reason}

    def _take_canary(self, live: Searcher, load: Callable[[str], Searcher]) -> None:
        trial, running = self.trials.canary, self._canary
        if trial is None or trial.number in self._over:
            self._canary = None
            return
        if running is not None and running.trial == trial and running.live is live:
            return
        if trial.release == live.release:
            self._over[trial.number] = "canary", None
            self._canary = None
            return
        searcher = self._loaded("canary", trial, load)
        self._canary = (
            _Running(trial, searcher, live, CanaryMonitor(trial.bounds, self._settings.deadline_s))
            if searcher
            else None
        )
        if searcher:
            log.info("canary %s: answers %.3g of the requests", trial.release[:12], trial.share)

    def _take_shadow(self, live: Searcher, load: Callable[[str], Searcher]) -> None:
        trial, running = self.trials.shadow, self._shadow
        if trial is None or trial.number in self._over:
            self._shadow = None
            return
        if trial.release == live.release:
            self._over[trial.number] = "shadow", None
            self._shadow = None
            return
        if running is not None and running.trial == trial:
            return
        searcher = self._loaded("shadow", trial, load)
        self._shadow = _Shadow(trial, searcher) if searcher else None
        if searcher:
            log.info("shadow %s: gets copies of %.3g of the requests", trial.release[:12], trial.share)

    def _loaded(self, kind: Kind, trial: Trial, load: Callable[[str], Searcher]) -> Searcher | None:
        """The trial's release; None where it cannot be loaded, for now (`_Waiting`) or for good (withdrawn)."""
        waiting = self._waiting.get(kind)
        if waiting is not None and waiting.number == trial.number and time.monotonic() < waiting.until:
            return None
        try:
            searcher = load(trial.release)
        except IncompleteReleaseError as error:
            self._wait(kind, trial, str(error), seconds=0)
        except (OSError, MemoryError) as error:
            self._wait(kind, trial, f"{type(error).__name__}: {error}", seconds=RETRY_S)
        except Exception as error:
            if not isinstance(error, RelevanceError):
                log.exception("%s %s: not loaded", kind, trial.release[:12])
            self._waiting.pop(kind, None)
            self._withdraw(kind, trial, f"it was not loaded: {error or type(error).__name__}")
        else:
            self._waiting.pop(kind, None)
            return searcher
        return None

    def _wait(self, kind: Kind, trial: Trial, reason: str, *, seconds: float) -> None:
        """Tries a trial again, after at least `seconds`; the log has each reason once."""
        before = self._waiting.get(kind)
        if before is None or (before.number, before.reason) != (trial.number, reason):
            log.warning("%s %s: does not run yet: %s", kind, trial.release[:12], reason)
        self._waiting[kind] = _Waiting(trial.number, reason, time.monotonic() + seconds)

    def _withdraw(self, kind: Kind, trial: Trial, reason: str) -> None:
        """Ends a trial in this process; the file is told by the next `follow`, as that may take time or fail."""
        with self._lock:
            if trial.number in self._over:
                return
            self._over[trial.number] = kind, reason
            if kind == "canary":
                self._canary = None
            else:
                self._shadow = None
            self.withdrawals[kind] += 1
        log.error("%s %s: withdrawn: %s", kind, trial.release[:12], reason)

    def _synchronise(self) -> None:
        """Tells the file of the trials that ended here, and reads it if it has changed."""
        try:
            for number, (kind, reason) in list(self._over.items()):
                self.trials = self.file.end(kind, number, reason)
                del self._over[number]
            found = self.file.stamp()
            if found != self._stamp:
                self.trials, self._stamp = self.file.read(), found
            self.fault = None
        except RelevanceError as error:
            if self.fault != str(error):
                log.error("trials: %s", error)
            self.fault = str(error)

    def _is_compared(self, trial: Canary, request_id: str, question: ComparedRequest) -> bool:
        judged = grades_of(question, self._grades) is not None
        return judged or self._lottery.draw(trial, request_id, "compare") < trial.bounds.compare

    def _offer(
        self,
        kind: Kind,
        trial: Trial,
        question: ComparedRequest,
        live: Searcher,
        other: Searcher,
        failed: Side | None = None,
    ) -> None:
        self._copies.offer(ShadowCopy(kind, trial.number, question, live, other, failed))

    def _finished(self, copy: ShadowCopy, end: End, pair: Pair | None) -> None:
        """Counts a copy, and what it says about the canary."""
        with self._lock:
            self.copies[copy.kind, end] += 1
        if pair is None:
            return
        if pair.comparison is not None and self.observer is not None:
            self.observer(copy.kind, pair.comparison)
        canary = self._canary
        if copy.kind != "canary" or canary is None:
            return
        if (canary.trial.number, canary.searcher, canary.live) != (copy.number, copy.trial, copy.live):
            return  # Another one by now, or measured against another live release.
        if copy.failed is None:
            self._judge(canary, canary.monitor.paired(text.normalise(copy.question.query), pair))
        elif (pair.live if copy.failed == "trial" else pair.trial).ending == "answered":
            self._judge(canary, canary.monitor.failed(canary=copy.failed == "trial"))

    def _judge(self, canary: _Running, reason: str | None) -> None:
        """Withdraws a canary that is out of bounds for this reason."""
        if reason is not None:
            self._withdraw("canary", canary.trial, reason)
