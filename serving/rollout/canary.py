"""The monitor of a canary's bounds: counts pairs of attempts, and requests on which a model failed.

Only what a model is to blame for counts. A client chooses its deadline and its texts, so

    a request whose model raised   counts once the other release has answered the same question
    a drawn or late request        counts by the pair that the service asks itself, however the request ended
"""

import threading
from collections import deque
from dataclasses import dataclass
from statistics import fmean, median

from pipeline.text import counted
from serving.rollout.pairs import Pair
from serving.rollout.trials import Bounds

KEPT = 500
"""Latest ratios of seconds, and latest overlaps, that are looked at."""
KEPT_QUERIES = 10_000
"""Most queries whose nDCG is kept."""


@dataclass(slots=True)
class _Side:
    """The counts of one release."""

    requests: int = 0
    errors: int = 0
    """Requests on which its model failed, and the other release's did not."""
    missed: int = 0
    """Pairs that it alone did not answer, or not in time."""

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts and means of a canary so far; None where nothing was measured."""

    requests: int
    errors: int
    """Requests on which its model failed, and the live one did not."""
    live_requests: int
    live_errors: int
    pairs: int
    """Questions that were put to both releases, and of which it is known who is to blame for a missing answer."""
    missed: int
    """Pairs that the canary alone did not answer, or not in time."""
    live_missed: int
    latency: float | None
    """Median of its seconds over the live release's, of the pairs that both answered."""
    compared: int
    """Pairs that both answered."""
    overlap: float | None
    judged: int
    ndcg: float | None
    live_ndcg: float | None


class CanaryMonitor:
    """Counts a canary in this process, and says when it is out of bounds; safe to use from many threads.

    Each method that counts returns why the canary is out of bounds, or None while it is not.
    """

    def __init__(self, bounds: Bounds, deadline_s: float) -> None:
        """
        Args:
            deadline_s: time of a request whose client names none.
        """
        self.bounds, self.deadline_s = bounds, deadline_s
        self._lock = threading.Lock()
        self._canary, self._live = _Side(), _Side()
        self._ratios: deque[float] = deque(maxlen=KEPT)
        """The canary's seconds over the live release's, of each pair that both answered."""
        self._overlaps: deque[float] = deque(maxlen=KEPT)
        self._pairs = self._compared = 0
        self._ndcg: dict[str, tuple[float, float]] = {}

    def requested(self, *, canary: bool) -> None:
        """Counts a request that a release got by chance, however it ended."""
        with self._lock:
            (self._canary if canary else self._live).requests += 1

    def failed(self, *, canary: bool) -> str | None:
        """Counts a request on which a release's model failed, and the other release's did not."""
        with self._lock:
            (self._canary if canary else self._live).errors += 1
            return self._errors()

    def paired(self, query: str, pair: Pair) -> str | None:
        """Counts a question that was put to both releases."""
        with self._lock:
            blames = pair.blames(self.bounds.max_latency, self.deadline_s)
            if blames is None:
                return None
            self._pairs += 1
            if blames[0] != blames[1]:
                (self._live if blames[0] else self._canary).missed += 1
            if not pair.answered:
                return self._missed()
            self._compared += 1
            self._ratios.append(pair.trial.seconds / max(pair.live.seconds, 1e-9))
            if pair.comparison is not None:
                if pair.comparison.overlap is not None:
                    self._overlaps.append(pair.comparison.overlap)
                ndcg = pair.comparison.ndcg
                if ndcg is not None and (query in self._ndcg or len(self._ndcg) < KEPT_QUERIES):
                    self._ndcg[query] = ndcg
            return self._missed() or self._latency() or self._overlap() or self._drop()

    def tally(self) -> Tally:
        """The counts and means until now."""
        with self._lock:
            return Tally(
                requests=self._canary.requests,
                errors=self._canary.errors,
                live_requests=self._live.requests,
                live_errors=self._live.errors,
                pairs=self._pairs,
                missed=self._canary.missed,
                live_missed=self._live.missed,
                latency=median(self._ratios) if self._ratios else None,
                compared=self._compared,
                overlap=fmean(self._overlaps) if self._overlaps else None,
                judged=len(self._ndcg),
                ndcg=self._mean_ndcg(0),
                live_ndcg=self._mean_ndcg(1),
            )

    def _errors(self) -> str | None:
        bounds, canary, live = self.bounds, self._canary, self._live
        expected = live.error_rate + bounds.max_errors
        # With fewer requests, as many errors as would be too many once there are enough.
        if canary.errors <= expected * max(canary.requests, bounds.min_requests):
            return None
        return (
            f"{canary.errors} of {counted(canary.requests, 'request')} failed, and {live.errors} of {live.requests} "
            f"live ones; max_errors is {bounds.max_errors:g}"
        )

    def _missed(self) -> str | None:
        bounds, canary, live = self.bounds, self._canary, self._live
        if canary.missed - live.missed <= bounds.max_errors * max(self._pairs, bounds.min_requests):
            return None
        return (
            f"{canary.missed} of {self._pairs} questions put to both releases had no answer in time from the canary "
            f"alone, and {live.missed} from the live release alone; max_errors is {bounds.max_errors:g}"
        )

    def _latency(self) -> str | None:
        slower = sum(ratio > self.bounds.max_latency for ratio in self._ratios)
        # With fewer pairs, as many slow ones as would move the median once there are enough.
        enough = max(len(self._ratios), min(self.bounds.min_compared, KEPT))
        if slower <= enough / 2:
            return None
        return (
            f"{median(self._ratios):.2f} times the live release's seconds, the median of {len(self._ratios)} questions "
            f"put to both; max_latency is {self.bounds.max_latency:g}"
        )

    def _overlap(self) -> str | None:
        if len(self._overlaps) < min(self.bounds.min_compared, KEPT):
            return None
        mean = fmean(self._overlaps)
        if mean >= self.bounds.min_overlap:
            return None
        return (
            f"the first results overlap by {mean:.3f} with the live release's in "
            f"{counted(len(self._overlaps), 'request')}; min_overlap is {self.bounds.min_overlap:g}"
        )

    def _drop(self) -> str | None:
        canary, live = self._mean_ndcg(0), self._mean_ndcg(1)
        if canary is None or live is None or len(self._ndcg) < self.bounds.min_judged:
            return None
        if live - canary <= self.bounds.max_ndcg_drop:
            return None
        return (
            f"nDCG@10 is {canary:.4f} on {counted(len(self._ndcg), 'judged query')}, the live release's {live:.4f}; "
            f"max_ndcg_drop is {self.bounds.max_ndcg_drop:g}"
        )

    def _mean_ndcg(self, side: int) -> float | None:
        return fmean(pair[side] for pair in self._ndcg.values()) if self._ndcg else None
