"""Routing of requests: the live release or a canary answers, and both may be asked the same question afterwards.

request ─► choose: live or canary ─► answer ─► answered: counted, and perhaps copied (`serving.rollout.shadow`)
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline import text
from serving.errors import InferenceError
from serving.rollout.active import ActiveTrials, RunningCanary
from serving.rollout.canary import Tally
from serving.rollout.comparison import ComparedRequest, Comparison, Grades, grades_of, read_grades
from serving.rollout.lottery import Lottery
from serving.rollout.pairs import Pair
from serving.rollout.shadow import End, ShadowCopy, ShadowQueue
from serving.rollout.trials import Kind
from serving.runtime.scheduler import Scheduler
from serving.scoring.searcher import Searcher
from serving.settings import Settings

Wish = Literal["always", "never"]
WISHES: tuple[Wish, ...] = ("always", "never")
"""Values of `x-canary`: the canary answers always, or never."""
Variant = Literal["live", "canary", "chosen"]
"""chosen: the client named a loaded release, so the answer says nothing about a trial."""

Observer = Callable[[Kind, Comparison], None]


@dataclass(frozen=True, slots=True)
class Route:
    """The release that answers a request."""

    searcher: Searcher
    variant: Variant
    wished: bool = False
    """Whether the client chose the release itself; such a request decides nothing about a canary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredRequest:
    """A request whose answer went out."""

    request_id: str
    status: int
    """Status of the answer; 500 also where it was answered without a model that failed."""
    question: ComparedRequest | None
    """None where the request was refused before any work, or must not be kept."""
    private: bool = False
    """Whether it must not be kept, so that a failure of its model counts without asking the other release."""
    late: bool = False
    """Whether it missed the service's own deadline, not only its client's; both releases are asked then."""

    @property
    def model_failed(self) -> bool:
        return self.status == InferenceError.status


class Rollout:
    """The trials as one process runs them; safe to use from many threads."""

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        self.active = ActiveTrials(settings, scheduler)
        self.copies: Counter[tuple[Kind, End]] = Counter()
        self.requests: Counter[Variant] = Counter()
        """Requests by the release that answered them, counted while a canary runs and summed over all canaries."""
        self.errors: Counter[Variant] = Counter()
        """The part of `requests` whose status is 500 or more."""
        self.observer: Observer | None = None
        """Called with every comparison."""
        grades: Grades = read_grades(Path(settings.judgments)) if settings.judgments else {}
        self._copies = ShadowQueue(scheduler, grades, self._finished)
        self._grades = grades
        self._lock = threading.Lock()
        self._lottery = Lottery()

    def choose(self, live: Searcher, request_id: str, wish: Wish | None) -> Route:
        """Chooses the release that answers a request for scores.

        Args:
            request_id: one process chooses the same release for the same id as long as the trial runs.
            wish: the client's wish; see WISHES.
        """
        canary = self.active.canary
        if canary is None or wish == "never":
            return Route(live, "live", wished=wish is not None)
        if wish == "always":
            return Route(canary.searcher, "canary", wished=True)
        if self._lottery.draw(canary.trial, request_id) < canary.trial.share:
            return Route(canary.searcher, "canary")
        return Route(live, "live")

    def answered(self, route: Route, request: AnsweredRequest) -> None:
        """Counts an answered request, and has its question put to both releases where a trial wants that; never blocks.

        A client chooses its deadline, its id and whether it stays, and may wish for a release, so none of these
        decides anything about a canary: a wished or repeated request counts nowhere, and one that was late counts only
        by what the service finds out when it asks both releases itself.
        """
        if route.variant == "chosen":
            return
        canary, shadow, question = self.active.canary, self.active.shadow, request.question
        on_canary = route.variant == "canary"
        if canary is not None and route.searcher in (canary.searcher, canary.live):
            self.requests[route.variant] += 1
            self.errors[route.variant] += request.status >= 500
            if not route.wished and self._lottery.first(request.request_id):
                canary.monitor.requested(canary=on_canary)
                copy = self._copy(canary, request, on_canary=on_canary)
                if copy is not None:
                    self._copies.offer(copy)
                elif request.model_failed and request.private:
                    self._judge(canary, canary.monitor.failed(canary=on_canary))
        if question is None or shadow is None or on_canary:
            return
        if self._lottery.draw(shadow.trial, request.request_id) < shadow.trial.share:
            number = shadow.trial.number
            self._copies.offer(ShadowCopy("shadow", number, question, route.searcher, shadow.searcher))

    def tally(self) -> Tally | None:
        """Counts of the running canary in this process; None where none runs."""
        canary = self.active.canary
        return canary.monitor.tally() if canary is not None else None

    def stats(self) -> Mapping[str, Any]:
        """The trials as JSON, with what this process counted."""
        tally = self.tally()
        canary, withdrawn = self.active.stats("canary"), self.active.trials.withdrawn
        return {
            "canary": canary and {**canary, "counts": asdict(tally) if tally else None},
            "shadow": self.active.stats("shadow"),
            "copies": {f"{kind} {end}": count for (kind, end), count in sorted(self.copies.items())},
            "withdrawn": asdict(withdrawn) if withdrawn else None,
            "fault": self.active.fault,
        }

    def settle(self) -> None:
        """Waits until all copies that were taken have ended."""
        self._copies.settle()

    def stop(self) -> None:
        self._copies.stop()

    def _copy(self, canary: RunningCanary, request: AnsweredRequest, *, on_canary: bool) -> ShadowCopy | None:
        """The copy to make of a request that may decide about a canary; None where there is none."""
        question = request.question
        if question is None:
            return None
        copy = ShadowCopy("canary", canary.trial.number, question, canary.live, canary.searcher)
        if request.model_failed:
            return replace(copy, failed="trial" if on_canary else "live")
        if not on_canary:
            return None
        if request.late:
            return replace(copy, late=True)
        judged = grades_of(question, self._grades) is not None
        drawn = self._lottery.draw(canary.trial, request.request_id, "compare") < canary.trial.bounds.compare
        return copy if judged or drawn else None

    def _finished(self, copy: ShadowCopy, end: End, pair: Pair | None) -> None:
        """Counts a copy, and what it says about the canary."""
        with self._lock:
            self.copies[copy.kind, end] += 1
        if pair is None:
            return
        if pair.comparison is not None and self.observer is not None:
            self.observer(copy.kind, pair.comparison)
        canary = self.active.canary
        if copy.kind != "canary" or canary is None:
            return
        if (canary.trial.number, canary.searcher, canary.live) != (copy.number, copy.trial, copy.live):
            return  # Another one by now, or measured against another live release.
        if copy.failed is None:
            self._judge(canary, canary.monitor.paired(text.normalise(copy.question.query), pair))
        elif (pair.live if copy.failed == "trial" else pair.trial).ending == "answered":
            self._judge(canary, canary.monitor.failed(canary=copy.failed == "trial"))

    def _judge(self, canary: RunningCanary, reason: str | None) -> None:
        """Withdraws a canary that is out of bounds for this reason."""
        if reason is not None:
            self.active.withdraw("canary", canary.trial, reason)
