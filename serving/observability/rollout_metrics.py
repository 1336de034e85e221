"""What is counted of releases on trial, in Prometheus's text format; see `serving.observability.metrics`."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.rollout.comparison import Comparison
from serving.rollout.traffic import Rollout, Variant
from serving.rollout.trials import Kind

OVERLAPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999)
CHANGES = (0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
KINDS: tuple[Kind, ...] = ("canary", "shadow")
VARIANTS: tuple[Variant, ...] = ("live", "canary")


class RolloutMetrics:
    """Histograms of comparisons as they end, and the counts of a rollout, copied when asked."""

    def __init__(self, rollout: Rollout, registry: CollectorRegistry) -> None:
        self._rollout = rollout
        self._last: dict[Any, float] = {}

        def histogram(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"relevance_trial_{name}", words, ["kind"], registry=registry, buckets=buckets)

        self._overlap = histogram("overlap", "Share of the first results that the two releases share", OVERLAPS)
        self._change = histogram("score_change", "Absolute change of a document's relevance", CHANGES)
        self._ndcg = Gauge(
            "relevance_canary_ndcg",
            "nDCG@10 on the judged queries among a canary's searches, of the process that told last",
            ["variant"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._copies = Counter("relevance_trial_copies", "Copies of requests", ["kind", "end"], registry=registry)
        self._withdrawals = Counter("relevance_trial_withdrawals", "Trials ended by us", ["kind"], registry=registry)
        self._requests = Counter("relevance_trial_requests", "Requests while a canary runs", ["variant"],
                                 registry=registry)  # fmt: skip
        self._errors = Counter("relevance_trial_errors", "Of these, 5xx", ["variant"], registry=registry)
        self._share = Gauge(
            "relevance_trial_share",
            "Share of the requests that a trial gets; 0 where none runs",
            ["kind"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        rollout.observer = self._compared

    def copy(self) -> None:
        rollout = self._rollout
        for (kind, end), copies in list(rollout.copies.items()):
            self._grown(self._copies.labels(kind, end), ("copies", kind, end), copies)
        for kind in KINDS:
            self._grown(self._withdrawals.labels(kind), ("withdrawals", kind), rollout.withdrawals[kind])
            self._share.labels(kind).set(rollout.share(kind))
        for variant in VARIANTS:
            self._grown(self._requests.labels(variant), ("requests", variant), rollout.requests[variant])
            self._grown(self._errors.labels(variant), ("errors", variant), rollout.errors[variant])
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

    def _grown(self, counter: Counter, name: Any, now: float) -> None:
        counter.inc(now - self._last.get(name, 0))
        self._last[name] = now
