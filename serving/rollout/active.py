"""The trials that run in this process: loaded, followed in the file, and withdrawn.

The trials stand in a file that all processes follow (`serving.rollout.trials`). A canary that falls out of its
bounds stops answering in this process at once; the file then tells the others, which look at it each second. A trial
whose model does not come back from a run is withdrawn before the worker, which has lost a runner, is replaced.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import RelevanceError
from serving.rollout.arrival import RETRY_S, IncompleteReleaseError, may_pass
from serving.rollout.canary import CanaryMonitor
from serving.rollout.trials import Bounds, Canary, Kind, Stamp, Trial, TrialFile, Trials
from serving.runtime.scheduler import PresentRun, Scheduler
from serving.scoring.searcher import Searcher
from serving.settings import Settings

STALL_SHARE = 1 / 3
"""A trial is withdrawn when a run of its model takes this share of `Settings.silent_s`; after the whole, the worker is
replaced."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningCanary:
    """A canary that answers in this process."""

    trial: Canary
    searcher: Searcher
    live: Searcher
    """The live release that the canary is measured against; with another one the counts begin again."""
    monitor: CanaryMonitor


@dataclass(frozen=True, slots=True)
class RunningShadow:
    """A shadow that gets copies in this process."""

    trial: Trial
    searcher: Searcher


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A trial that does not run in this process yet, for a reason that may pass."""

    number: int
    reason: str
    until: float
    """Time of the next attempt, by the monotonic clock."""


class ActiveTrials:
    """The canary and the shadow of one process; safe to use from many threads."""

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        self.file = TrialFile(settings.workspace)
        self.trials = Trials()
        """The trials as they were last read."""
        self.fault: str | None = None
        """Why the file could not be read or written."""
        self.withdrawals: Counter[Kind] = Counter()
        """By this process."""
        self.runners_lost = False
        """Whether all runners wait for a trial that was withdrawn, so that only another process can answer."""
        self.canary: RunningCanary | None = None
        self.shadow: RunningShadow | None = None
        self._settings = settings
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._stalled: PresentRun | None = None
        """A run of a trial's model that was overdue at the last look."""
        self._stamp: Stamp | None = None
        self._waiting: dict[Kind, _Waiting] = {}
        self._over: dict[int, tuple[Kind, str | None]] = {}
        """Trials that ended here, and why (None: promoted), of which the file does not tell yet."""

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
        it is live; the log says so.

        Raises:
            RelevanceError: no such release, or the file could not be read or written.
        """
        given, withdrawn = self._settings, self.file.read().withdrawn

        def release(name: str) -> str:
            if withdrawn is not None and withdrawn.release.startswith(name):
                return withdrawn.release  # It may be removed by now.
            return resolve(name)

        if given.canary:
            canary = Canary(release=release(given.canary), share=given.canary_share, bounds=Bounds())
            self._begin_setting("canary", canary, live)
        if given.shadow:
            self._begin_setting("shadow", Trial(release=release(given.shadow), share=given.shadow_share), live)

    def _begin_setting(self, kind: Kind, trial: Trial, live: Searcher) -> None:
        """Begins one trial that the settings name, or logs why not."""
        seen = self.file.read()
        present: Trial | None = seen.canary if kind == "canary" else seen.shadow
        if present is not None:
            if (present.release, present.share) == (trial.release, trial.share):
                return  # This service was started again, or another one has the same settings.
            why = f"as {present.release[:12]} gets {present.share:.3g} of this workspace's requests; end that first"
        elif seen.withdrawn is not None and seen.withdrawn.release == trial.release:
            why = f"it was withdrawn at {seen.withdrawn.when}: {seen.withdrawn.reason}"
        elif trial.release == live.release:
            why = "it is live"
        else:
            self.file.begin(kind, trial)
            return
        log.warning("%s %s of the settings: not begun, %s", kind, trial.release[:12], why)

    def share(self, kind: Kind) -> float:
        """Share of the requests that the trial of this kind gets in this process."""
        running = self.canary if kind == "canary" else self.shadow
        return running.trial.share if running is not None else 0.0

    def end_stalled(self) -> None:
        """Withdraws a trial whose model has not come back from a run for a while.

        A run depends on nothing that a client chooses but a text of bounded length. Where a run of the live release is
        overdue too, the machine may be at fault; where the whole process stood still, the run is gone at the next look.
        """
        overdue = [run for run in self._scheduler.present_runs() if run.seconds > STALL_SHARE * self._settings.silent_s]
        before, self._stalled = self._stalled, overdue[0] if overdue else None
        if not overdue or overdue[0] is not before:
            return
        trials: list[tuple[Kind, RunningCanary | RunningShadow | None]] = [
            ("canary", self.canary),
            ("shadow", self.shadow),
        ]
        for kind, running in trials:
            if running is None:
                continue
            models = running.searcher.models.values()
            if all(any(run.model is model for model in models) for run in overdue):
                seconds = overdue[0].seconds
                self.withdraw(kind, running.trial, f"a run of its model has not come back for {seconds:.0f} s")
                self._synchronise()
                # Where the file does not tell of the withdrawal yet, the next process would load the trial again.
                self.runners_lost = not self._over and len(overdue) >= self._scheduler.runners

    def stats(self, kind: Kind) -> dict[str, Any] | None:
        """The trial of this kind as JSON, and whether it runs in this process; None where there is none."""
        trial: Trial | None = self.trials.canary if kind == "canary" else self.trials.shadow
        if trial is None:
            return None
        here = self.canary if kind == "canary" else self.shadow
        runs_here = here is not None and here.trial.number == trial.number
        waiting = self._waiting.get(kind)
        reason = waiting.reason if waiting is not None and waiting.number == trial.number and not runs_here else None
        return {**asdict(trial), "runs_here": runs_here, "waits_for": reason}

    def _take_canary(self, live: Searcher, load: Callable[[str], Searcher]) -> None:
        trial, running = self.trials.canary, self.canary
        if trial is None or trial.number in self._over:
            self.canary = None
            return
        if running is not None and running.trial == trial and running.live is live:
            return
        self.canary = None
        if trial.release == live.release:
            self._reached("canary", trial)
            return
        searcher = self._loaded("canary", trial, load)
        if searcher is None:
            return
        if paths := [path for path in searcher.unanswered if path not in live.unanswered]:
            self.withdraw("canary", trial, f"it cannot answer {', '.join(paths)}, which the live release answers")
            return
        monitor = CanaryMonitor(trial.bounds, self._settings.deadline_s)
        self.canary = RunningCanary(trial, searcher, live, monitor)
        log.info("canary %s: answers %.3g of the requests", trial.release[:12], trial.share)

    def _take_shadow(self, live: Searcher, load: Callable[[str], Searcher]) -> None:
        trial, running = self.trials.shadow, self.shadow
        if trial is None or trial.number in self._over:
            self.shadow = None
            return
        if trial.release == live.release:
            self._reached("shadow", trial)
            self.shadow = None
            return
        if running is not None and running.trial == trial:
            return
        searcher = self._loaded("shadow", trial, load)
        self.shadow = RunningShadow(trial, searcher) if searcher else None
        if searcher:
            log.info("shadow %s: gets copies of %.3g of the requests", trial.release[:12], trial.share)

    def _reached(self, kind: Kind, trial: Trial) -> None:
        """Ends a trial whose release became live; it goes on where this service alone is pinned to the release."""
        if self._settings.release == "live":
            self._over[trial.number] = kind, None

    def _loaded(self, kind: Kind, trial: Trial, load: Callable[[str], Searcher]) -> Searcher | None:
        """The trial's release; None where it cannot be loaded, for now (`_Waiting`) or for good (withdrawn)."""
        waiting = self._waiting.get(kind)
        if waiting is not None and waiting.number == trial.number and time.monotonic() < waiting.until:
            return None
        try:
            searcher = load(trial.release)
        except IncompleteReleaseError as error:
            self._wait(kind, trial, str(error), seconds=0)
        except Exception as error:
            if may_pass(error):
                self._wait(kind, trial, f"{type(error).__name__}: {error}", seconds=RETRY_S)
                return None
            if not isinstance(error, RelevanceError):
                log.exception("%s %s: not loaded", kind, trial.release[:12])
            self._waiting.pop(kind, None)
            self.withdraw(kind, trial, f"it was not loaded: {error or type(error).__name__}")
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

    def withdraw(self, kind: Kind, trial: Trial, reason: str) -> None:
        """Ends a trial in this process; the file is told by the next `follow`, as that may take time or fail."""
        with self._lock:
            if trial.number in self._over:
                return
            self._over[trial.number] = kind, reason
            if kind == "canary":
                self.canary = None
            else:
                self.shadow = None
            self.withdrawals[kind] += 1
        log.error("%s %s: withdrawn: %s", kind, trial.release[:12], reason)

    def _synchronise(self) -> None:
        """Tells the file of the trials that ended here, and reads it if it has changed."""
        try:
            for number, (kind, reason) in list(self._over.items()):
                self.trials = self.file.end(kind, number, reason)
                del self._over[number]
            stamp = self.file.stamp()
            if stamp != self._stamp:
                self.trials, self._stamp = self.file.read(), stamp
            self.fault = None
        except RelevanceError as error:
            if self.fault != str(error):
                log.error("trials: %s", error)
            self.fault = str(error)
