"""What the service counts, in Prometheus's text format.

Names that begin with `te_` are those of text-embeddings-inference and mean the same, so its dashboards work here; they
have no `_total` at the end, which the Prometheus client gives to counters only.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.lifecycle import Lifecycle

disable_created_metrics()  # type: ignore[no-untyped-call]  # A series a counter that nobody reads.

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

FAILURES = {400: "validation", 422: "validation", 499: "dropped", 504: "dropped"}
"""Status → the `err` that text-embeddings-inference would count; any other is inference."""


class Metrics:
    """The counters of one app."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(_State(lifecycle))
        self.te_count = _Count("te_request_count", "Requests for scores or vectors", "method", registry)
        self.te_success = _Count("te_request_success", "Of these, answered", "method", registry)
        self.te_failure = _Count("te_request_failure", "Of these, failed", "err", registry)
        self.te_duration = Histogram(
            "te_request_duration", "Seconds of an answered one", registry=registry, buckets=SECONDS
        )
        self.requests = Counter("relevance_requests", "All requests", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "relevance_request_seconds", "Seconds of a request", ["path"], registry=registry, buckets=SECONDS
        )
        self.in_flight = Gauge("relevance_requests_in_flight", "Requests being answered now", registry=registry)
        self.texts = Counter(
            "relevance_texts", "Documents scored and texts embedded, known ones included", registry=registry
        )
        self.parts = Histogram(
            "relevance_search_part_seconds", "Parts of a search", ["part"], registry=registry, buckets=SECONDS
        )

    def began(self) -> None:
        self.in_flight.inc()

    def ended(self, path: str, status: int, seconds: float, items: int | None) -> None:
        """A request was answered.

        Args:
            path: of the route, not of the request, so that strangers cannot add series.
            items: documents or texts of a request for scores or vectors; None for any other request.
        """
        self.in_flight.dec()
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
        if items is None:
            return
        method = "single" if items == 1 else "batch"
        self.texts.inc(items)
        self.te_count.add(method)
        if status < 400:
            self.te_success.add(method)
            self.te_duration.observe(seconds)
        else:
            self.te_failure.add(FAILURES.get(status, "inference"))

    def searched(self, milliseconds: Mapping[str, float]) -> None:
        for part, spent in milliseconds.items():
            self.parts.labels(part).observe(spent / 1000)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Count(Collector):
    """A counter whose name stays as it is."""

    def __init__(self, name: str, documentation: str, label: str, registry: CollectorRegistry) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._values: dict[str, int] = {}
        registry.register(self)

    def add(self, value: str) -> None:
        # Called from the event loop only, so it needs no lock.
        self._values[value] = self._values.get(value, 0) + 1

    def collect(self) -> Iterator[Metric]:
        family = Metric(self._name, self._documentation, "unknown")
        for value, count in sorted(self._values.items()):
            family.add_sample(self._name, {self._label: value}, count)
        yield family


class _State(Collector):
    """What the caches and the life cycle count themselves, read when asked."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def collect(self) -> Iterator[Metric]:
        caches = self._lifecycle.caches
        facts = {"scores": caches.scores.facts(), "vectors": caches.vectors.facts()}
        for name, words in (
            ("hits", "Found in memory"),
            ("joined", "Computed for another request at that moment"),
            ("misses", "Computed"),
            ("evictions", "Let go to make room"),
        ):
            family = CounterMetricFamily(f"relevance_cache_{name}", words, labels=["cache"])
            for cache, fact in facts.items():
                family.add_metric([cache], getattr(fact, name))
            yield family
        for name, words in (("entries", "Entries held"), ("bytes", "Memory held")):
            gauge = GaugeMetricFamily(f"relevance_cache_{name}", words, labels=["cache"])
            for cache, fact in facts.items():
                gauge.add_metric([cache], getattr(fact, name))
            yield gauge
        yield CounterMetricFamily("relevance_release_swaps", "Releases taken while running", self._lifecycle.swaps)
        yield CounterMetricFamily("relevance_release_refusals", "Releases refused", self._lifecycle.refusals)
        info = GaugeMetricFamily(
            "relevance_release_info", "The release that answers", labels=["release", "ranker", "encoder", "precision"]
        )
        current = self._lifecycle.loaded
        if current is not None:
            ranker, encoder = current.ranker, current.encoder
            info.add_metric([current.release, ranker.digest, encoder.digest, ranker.precision], 1)
        yield info
