"""The monitor of a canary's bounds: counts its requests and the live ones, and comparisons of both."""

import threading
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, median

from serving.rollout.comparison import Comparison
from serving.rollout.trials import Bounds

KEPT = 500
"""Latest latencies of each side, and latest overlaps, that are looked at."""
KEPT_QUERIES = 10_000
CHECK_EVERY = 20
"""Requests between two looks at medians, which cost more than counting."""


@dataclass(slots=True)
class _Side:
    """The requests that one release answered."""

    requests: int = 0
    errors: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Seconds of each request divided by the texts that it computed."""

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts and means of a canary so far; None where nothing was measured."""

    requests: int
    errors: int
    live_requests: int
    live_errors: int
    latency: float | None
    """Its median latency over the live one."""
    compared: int
    overlap: float | None
    judged: int
    ndcg: float | None
    live_ndcg: float | None


class CanaryMonitor:
    """Counts a canary's requests in this process, tells when it is out of bounds; safe to use from many threads."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._lock = threading.Lock()
        self._canary, self._live = _Side(), _Side()
        self._overlaps: deque[float] = deque(maxlen=KEPT)
        self._compared = 0
        self._ndcg: dict[str, tuple[float, float]] = {}

    def answered(self, *, canary: bool, status: int, seconds: float, computed: int) -> str | None:
        """Counts a request.

        Args:
            seconds: of work on it.
            computed: texts that were in no cache.

        Returns:
            Why the canary is out of bounds, or None while it is not.
        """
        with self._lock:
            side = self._canary if canary else self._live
            side.requests += 1
            side.errors += status >= 500
            if status < 400 and computed:
                side.seconds.append(seconds / computed)
            return self._errors() or (self._latency() if side.requests % CHECK_EVERY == 0 else None)

    def compared(self, query: str, comparison: Comparison) -> str | None:
        """Counts a request that live answered too; returns as `answered` does."""
        with self._lock:
            self._compared += 1
            if comparison.overlap is not None:
                self._overlaps.append(comparison.overlap)
            if comparison.ndcg is not None and (query in self._ndcg or len(self._ndcg) < KEPT_QUERIES):
                self._ndcg[query] = comparison.ndcg
            return self._overlap() or self._drop()

    def tally(self) -> Tally:
        with self._lock:
            both = self._canary.seconds and self._live.seconds
            return Tally(
                requests=self._canary.requests,
                errors=self._canary.errors,
                live_requests=self._live.requests,
                live_errors=self._live.errors,
                latency=self._ratio() if both else None,
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
            f"{canary.errors} of {canary.requests} requests failed, and {live.errors} of {live.requests} live ones; "
            f"max_errors is {bounds.max_errors:g}"
        )

    def _latency(self) -> str | None:
        canary, live = self._canary.seconds, self._live.seconds
        if min(len(canary), len(live)) < min(self.bounds.min_requests, KEPT):
            return None
        ratio = self._ratio()
        if ratio <= self.bounds.max_latency:
            return None
        return (
            f"{1000 * median(canary):.2f} ms a computed text, {ratio:.2f} times the live release's; "
            f"max_latency is {self.bounds.max_latency:g}"
        )

    def _overlap(self) -> str | None:
        if len(self._overlaps) < min(self.bounds.min_compared, KEPT):
            return None
        mean = fmean(self._overlaps)
        if mean >= self.bounds.min_overlap:
            return None
        return (
            f"the first results overlap by {mean:.3f} with the live release's in {len(self._overlaps)} requests; "
            f"min_overlap is {self.bounds.min_overlap:g}"
        )

    def _drop(self) -> str | None:
        canary, live = self._mean_ndcg(0), self._mean_ndcg(1)
        if canary is None or live is None or len(self._ndcg) < self.bounds.min_judged:
            return None
        if live - canary <= self.bounds.max_ndcg_drop:
            return None
        return (
            f"nDCG@10 is {canary:.4f} on {len(self._ndcg)} judged queries, the live release's {live:.4f}; "
            f"max_ndcg_drop is {self.bounds.max_ndcg_drop:g}"
        )

    def _ratio(self) -> float:
        return median(self._canary.seconds) / max(median(self._live.seconds), 1e-9)

    def _mean_ndcg(self, side: int) -> float | None:
        return fmean(pair[side] for pair in self._ndcg.values()) if self._ndcg else None
