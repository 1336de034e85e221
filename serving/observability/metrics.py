"""The service's metrics in Prometheus's text format.

Names that begin with `te_` are those of text-embeddings-inference and mean the same, so its dashboards work here. They
have no `_total` at the end, which the Prometheus client adds to counters.

Several processes write into files of one folder, and each answers with the sums over all of them. Counters include
processes that have ended; gauges include only those that live.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.values import ValueClass

from serving.errors import ServingError
from serving.observability.rollout_metrics import RolloutMetrics
from serving.rollout.lifecycle import Lifecycle

disable_created_metrics()  # type: ignore[no-untyped-call]  # One more series for each counter, which nobody reads.

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of the histograms of seconds."""

RELEASE_INFO = "relevance_release_info"
"""The one metric that names releases; its series end when their release does."""

FAILURES = {
    **dict.fromkeys((400, 405, 413, 415, 421, 422), "validation"),
    **{408: "dropped", 499: "dropped", 504: "dropped"},
    429: "overloaded",
}
"""Status → the `err` that text-embeddings-inference would count; any other is inference."""


class Metrics:
    """The metrics of one process, or of all that share a folder."""

    def __init__(self, lifecycle: Lifecycle, folder: Path | None = None) -> None:
        """
        Args:
            folder: where the processes add up; the environment's PROMETHEUS_MULTIPROC_DIR must have named it when the
                process began. None for a process alone.
        """
        registry = self._registry = CollectorRegistry()
        self._folder = folder
        self._state = _StateMetrics(lifecycle, registry)
        self._load = _LoadMetrics(lifecycle, registry)
        self._trials = RolloutMetrics(lifecycle.rollout, registry)
        self.te_count = _PlainCounter(
            "te_request_count", "Requests for scores or vectors", ["method"], registry=registry
        )
        self.te_success = _PlainCounter(
            "te_request_success", "Requests for scores or vectors that were answered", ["method"], registry=registry
        )
        self.te_failure = _PlainCounter(
            "te_request_failure", "Requests for scores or vectors that failed", ["err"], registry=registry
        )
        self.te_duration = _seconds("te_request_duration", "Seconds of an answered request", registry)
        self.te_queue = _seconds("te_request_queue_duration", "Seconds that a request waited for a thread", registry)
        self.te_inference = _seconds(
            "te_request_inference_duration", "Seconds of work on a request in its thread", registry
        )
        self.requests = Counter("relevance_requests", "All requests", ["path", "status"], registry=registry)
        self.seconds = _seconds("relevance_request_seconds", "Seconds of a request", registry, "path")
        self.in_flight = Gauge(
            "relevance_requests_in_flight",
            "Requests being answered now",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.texts = Counter(
            "relevance_texts", "Documents scored and texts embedded, cached ones included", registry=registry
        )
        self.degraded = Counter(
            "relevance_search_degraded", "Searches answered without a model", ["missing"], registry=registry
        )
        self.parts = _seconds("relevance_search_part_seconds", "Parts of a search", registry, "part")
        # Labels that every request has. To look up a series takes the client as long as to count in it.
        self._requests_with = functools.cache(self.requests.labels)
        self._seconds_of = functools.cache(self.seconds.labels)
        self._count_of = functools.cache(self.te_count.labels)
        self._success_of = functools.cache(self.te_success.labels)
        self._count_of("single")  # Opens the last file now, while there may be more open files.

    def began(self) -> None:
        """Counts a request that begins."""
        self.in_flight.inc()

    def ended(self, path: str, status: int, seconds: float, items: int | None) -> None:
        """Counts a request that was answered.

        Args:
            path: the route's path, not the request's, so that strangers cannot add series.
            items: documents or texts of a request for scores or vectors; None for any other request.
        """
        self.in_flight.dec()
        self._requests_with(path, status).inc()
        self._seconds_of(path).observe(seconds)
        if items is None:
            return
        method = "single" if items == 1 else "batch"
        self.texts.inc(items)
        self._count_of(method).inc()
        if status < 400:
            self._success_of(method).inc()
            self.te_duration.observe(seconds)
        else:
            self.te_failure.labels(FAILURES.get(status, "inference")).inc()

    def searched(self, milliseconds: Mapping[str, float], degraded: str | None = None) -> None:
        """Counts a search that was answered; `degraded` names the model that was missing, if one was."""
        if degraded is not None:
            self.degraded.labels(degraded).inc()
        for part, spent in milliseconds.items():
            self.parts.labels(part).observe(spent / 1000)

    def worked(self, queued_s: float, ran_s: float) -> None:
        """Counts a request's seconds of waiting for a thread and of work in it."""
        self.te_queue.observe(queued_s)
        self.te_inference.observe(ran_s)

    def refresh(self) -> None:
        """Copies the counts of caches, scheduler and rollout; other processes see them from then on."""
        self._state.copy()
        self._load.copy()
        self._trials.copy()

    def text(self) -> bytes:
        """All metrics in Prometheus's text format.

        Raises:
            ServingError: the folder of the processes was removed.
        """
        self.refresh()
        if self._folder is None:
            return generate_latest(_PresentReleases(self._registry))
        if not self._folder.is_dir():
            raise ServingError(f"{self._folder}: the folder of metrics was removed; start the service again")
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(_PresentReleases(registry))


def _seconds(name: str, documentation: str, registry: CollectorRegistry, *labels: str) -> Histogram:
    return Histogram(name, documentation, labels, registry=registry, buckets=SECONDS)


class _PresentReleases(Collector):
    """The metrics of a registry without the releases that no process answers with any more.

    Files of several processes keep each series that was ever written. Without this, every release that was ever live
    would stay in the answer, with the value 0.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            if metric.name == RELEASE_INFO:
                metric.samples = [sample for sample in metric.samples if sample.value > 0]
            yield metric


class _PlainCounter(MetricWrapperBase):
    """A counter without `_total` at the end of its name; the sum is over all processes."""

    _type = "unknown"

    def _metric_init(self) -> None:
        self._value = ValueClass(
            self._type, self._name, self._name, self._labelnames, self._labelvalues, self._documentation
        )

    def inc(self) -> None:
        self._value.inc(1)

    def _child_samples(self) -> list[Sample]:
        return [Sample("", {}, self._value.get(), None, None)]


class _StateMetrics:
    """Copies of the counts that caches and life cycle keep."""

    def __init__(self, lifecycle: Lifecycle, registry: CollectorRegistry) -> None:
        self._lifecycle = lifecycle
        self._last: dict[Any, float] = {}
        self._counts = {
            name: Counter(f"relevance_cache_{name}", help_text, ["cache"], registry=registry)
            for name, help_text in (
                ("hits", "Values read from memory"),
                ("joined", "Values that another request was computing at that moment"),
                ("misses", "Values computed"),
                ("evictions", "Values dropped to make room"),
            )
        }
        self._sizes = {
            name: Gauge(f"relevance_cache_{name}", help_text, ["cache"], registry=registry, multiprocess_mode="livesum")
            for name, help_text in (("entries", "Entries in memory"), ("bytes", "Bytes in memory"))
        }
        self._swaps = Counter(
            "relevance_release_swaps", "Releases that replaced another while the service ran", registry=registry
        )
        self._refusals = Counter("relevance_release_refusals", "Releases refused", registry=registry)
        self._info = Gauge(
            RELEASE_INFO,
            "Number of processes that answer with this release",
            ["release", "ranker", "encoder", "precision"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._release: Any = None

    def copy(self) -> None:
        """Copies the present counts into the metrics."""
        caches = self._lifecycle.caches
        for cache, counts in (("scores", caches.scores.stats()), ("vectors", caches.vectors.stats())):
            for name, counter in self._counts.items():
                self._advance(counter.labels(cache), (name, cache), getattr(counts, name))
            for name, gauge in self._sizes.items():
                gauge.labels(cache).set(getattr(counts, name))
        self._advance(self._swaps, "swaps", self._lifecycle.swaps)
        self._advance(self._refusals, "refusals", self._lifecycle.refusals.count)
        current = self._lifecycle.loaded
        if current is not None:
            models = current.models
            self._sizes["bytes"].labels("tokens").set(sum(model.tokeniser.bytes for model in models.values()))
            digests = [models[role].digest if role in models else "" for role in ("ranker", "encoder")]
            labels = (current.release, *digests, next(iter(models.values())).precision)
            release = self._info.labels(*labels)
            if self._release not in (None, release):
                self._release.set(0)
            self._release = release
            release.set(1)

    def _advance(self, counter: Counter, name: Any, total: float) -> None:
        """Raises a counter by the growth of a total since the last call with this name."""
        counter.inc(total - self._last.get(name, 0))
        self._last[name] = total


class _LoadMetrics:
    """Copies of the counts that scheduler and shared cache keep."""

    QUEUE = (("runs", "Runs of a model"), ("expired", "Inputs whose deadline passed while they waited"),
             ("cancelled", "Inputs that nobody waited for any more"),
             ("replaced", "Runner threads that ended and were replaced"))  # fmt: skip
    SHARED = (("hits", "Values read"), ("misses", "Values that were not in the cache"),
              ("unreadable", "Values in another form than this service writes"),
              ("failures", "Look-ups and writes that failed or took too long"),
              ("skipped", "Look-ups not made because of earlier failures"),
              ("unwritten", "Values not written because of failures or because too many waited"))  # fmt: skip

    def __init__(self, lifecycle: Lifecycle, registry: CollectorRegistry) -> None:
        self._lifecycle = lifecycle
        self._last: dict[Any, float] = {}

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(name, help_text, labels, registry=registry, multiprocess_mode="livesum")

        self._items = gauge("te_queue_size", "Inputs that wait for a runner")
        self._tokens = gauge("relevance_queue_tokens", "Tokens of the inputs that wait")
        self._wait = Gauge(
            "relevance_queue_wait_seconds",
            "Estimated seconds that a request would wait if it arrived now",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._pace = gauge("relevance_tokens_per_second", "Measured throughput of all runners on a model", "model")
        self._stalled = Gauge(
            "relevance_longest_run_seconds",
            "Seconds that the longest of the present runs has lasted",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._queue = {
            name: Counter(f"relevance_runner_{name}", help_text, registry=registry) for name, help_text in self.QUEUE
        }
        self._shared = {
            name: Counter(f"relevance_shared_cache_{name}", help_text, registry=registry)
            for name, help_text in self.SHARED
        }
        self._resting = gauge(
            "relevance_shared_cache_resting", "1 while the shared cache is left alone because of failures"
        )

    def copy(self) -> None:
        """Copies the present counts into the metrics."""
        scheduler, shared, current = self._lifecycle.scheduler, self._lifecycle.shared, self._lifecycle.loaded
        queue = scheduler.stats()
        self._items.set(queue.items)
        self._tokens.set(queue.tokens)
        self._wait.set(queue.wait_s)
        self._stalled.set(scheduler.stalled_s())
        for model in current.models.values() if current is not None else ():
            self._pace.labels(model.role).set(scheduler.runners * (model.pace.tokens_per_s or 0.0))
        sources: list[tuple[dict[str, Counter], Any]] = [(self._queue, queue)]
        if shared is not None:
            sources.append((self._shared, shared.stats()))
            self._resting.set(shared.resting)
        for counters, totals in sources:
            for name, counter in counters.items():
                last = self._last.get((id(counters), name), 0)
                counter.inc(getattr(totals, name) - last)
                self._last[id(counters), name] = getattr(totals, name)
