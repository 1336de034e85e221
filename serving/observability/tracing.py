"""OpenTelemetry spans: one for each request, and below it the wait for a thread and the work.

No span holds a text of a request. Spans are made only when a collector is named; that needs the package
opentelemetry-sdk (the extra `otel`). A request's `traceparent` header makes its span a part of the caller's trace.
"""

import time
from collections.abc import Mapping
from typing import Any

from pipeline.errors import MissingError


class Tracing:
    """Makes spans with a tracer of OpenTelemetry; without a tracer it makes none."""

    def __init__(self, tracer: Any = None) -> None:
        self._tracer = tracer

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """Tracing that sends spans by OTLP over HTTP.

        Args:
            endpoint: address of a collector, such as http://127.0.0.1:4318/v1/traces; empty makes no spans.

        Raises:
            MissingError: OpenTelemetry is not installed.
        """
        if not endpoint:
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MissingError(
                "otlp_endpoint is set, but OpenTelemetry is not installed; pip install 'search-relevance[otel]'"
            ) from error
        provider = TracerProvider(resource=Resource.create({"service.name": "search-relevance"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider.get_tracer("serving"))

    def request(self, method: str, headers: Mapping[str, str]) -> Any:
        """The span of a request that begins now, below the caller's span; None without a tracer."""
        if self._tracer is None:
            return None
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(method, context=extract(dict(headers)), kind=SpanKind.SERVER)

    def part(self, parent: Any, name: str, seconds: float) -> None:
        """Records a span for a part of a request that took `seconds` and has just ended."""
        if parent is None:
            return
        from opentelemetry.trace import set_span_in_context

        now = time.time_ns()
        began = now - int(seconds * 1e9)
        self._tracer.start_span(name, context=set_span_in_context(parent), start_time=began).end(now)

    def ended(self, span: Any, name: str, attributes: Mapping[str, Any]) -> None:
        """Ends a request's span; its attributes are the values of the request's log line."""
        if span is None:
            return
        span.update_name(name)
        for attribute, value in attributes.items():
            if isinstance(value, bool | int | float | str):
                span.set_attribute(attribute, value)
        span.end()
