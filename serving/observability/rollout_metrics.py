"""Prometheus metrics of canary and shadow trials; see `serving.observability.metrics`."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.rollout.comparison import Comparison
from serving.rollout.traffic import Rollout, Variant
from serving.rollout.trials import Kind

OVERLAP_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999)
"""Bounds of the histogram of shares of results that two releases share."""
CHANGE_BUCKETS = (0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Bounds of the histogram of changes of a document's relevance."""
KINDS: tuple[Kind, ...] = ("canary", "shadow")
VARIANTS: tuple[Variant, ...] = ("live", "canary")


class RolloutMetrics:
    """Histograms of finished comparisons, and copies of a rollout's own counts."""

    def __init__(self, rollout: Rollout, registry: CollectorRegistry) -> None:
        self._rollout = rollout
        self._last: dict[Any, float] = {}

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"relevance_trial_{name}", help_text, ["kind"], registry=registry, buckets=buckets)

        self._overlap = histogram("overlap", "Share of the first results that the two releases share", OVERLAP_BUCKETS)
        self._change = histogram("score_change", "Absolute change of a document's relevance", CHANGE_BUCKETS)
        self._ndcg = Gauge(
            "relevance_canary_ndcg",
            "nDCG@10 on the judged queries among a canary's searches, in the process that reported last",
            ["variant"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._copies = Counter("relevance_trial_copies", "Copies of requests", ["kind", "end"], registry=registry)
        self._withdrawals = Counter(
            "relevance_trial_withdrawals", "Trials that the service ended by itself", ["kind"], registry=registry
        )
        self._requests = Counter("relevance_trial_requests", "Requests while a canary runs", ["variant"],
                                 registry=registry)  # fmt: skip
        self._errors = Counter(
            "relevance_trial_errors", "Requests while a canary runs that ended with 5xx", ["variant"], registry=registry
        )
        self._share = Gauge(
            "relevance_trial_share",
            "Share of the requests that a trial gets; 0 where none runs",
            ["kind"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        rollout.observer = self._compared

    def copy(self) -> None:
        """Copies the rollout's present counts into the metrics."""
        rollout = self._rollout
        for (kind, end), copies in list(rollout.copies.items()):
            self._advance(self._copies.labels(kind, end), ("copies", kind, end), copies)
        for kind in KINDS:
            self._advance(self._withdrawals.labels(kind), ("withdrawals", kind), rollout.active.withdrawals[kind])
            self._share.labels(kind).set(rollout.active.share(kind))
        for variant in VARIANTS:
            self._advance(self._requests.labels(variant), ("requests", variant), rollout.requests[variant])
            self._advance(self._errors.labels(variant), ("errors", variant), rollout.errors[variant])
        tally = rollout.tally()
        if tally is not None and tally.ndcg is not None and tally.live_ndcg is not None:
            self._ndcg.labels("canary").set(tally.ndcg)
            self._ndcg.labels("live").set(tally.live_ndcg)

    def _compared(self, kind: Kind, comparison: Comparison) -> None:
        if comparison.overlap is not None:
            self._overlap.labels(kind).observe(comparison.overlap)
        changed = self._change.labels(kind)
        for change in comparison.changes:
            changed.observe(change)

    def _advance(self, counter: Counter, name: Any, total: float) -> None:
        """Raises a counter by the growth of a total since the last call with this name."""
        counter.inc(total - self._last.get(name, 0))
        self._last[name] = total
