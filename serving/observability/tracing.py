"""Spans for OpenTelemetry: one a request, below it the wait for a thread and the work; never a text.

Off unless a collector is named, and then the package opentelemetry-sdk (the extra `otel`) is needed. A request's
`traceparent` header makes its span a part of the caller's trace.
"""

import time
from collections.abc import Mapping
from typing import Any

from pipeline.errors import MissingError


class Tracing:
    """Makes spans with a tracer of OpenTelemetry; nothing without one."""

    def __init__(self, tracer: Any = None) -> None:
        self._tracer = tracer

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """Sends spans to a collector's OTLP address over HTTP, such as http://127.0.0.1:4318/v1/traces; "" is off.

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
        """The span of a request that begins now, below its caller's; None when off."""
        if self._tracer is None:
            return None
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(method, context=extract(dict(headers)), kind=SpanKind.SERVER)

    def part(self, parent: Any, name: str, seconds: float) -> None:
        """A part of a request that has just ended and took so long."""
        if parent is None:
            return
        from opentelemetry.trace import set_span_in_context

        now = time.time_ns()
        began = now - int(seconds * 1e9)
        self._tracer.start_span(name, context=set_span_in_context(parent), start_time=began).end(now)

    def ended(self, span: Any, name: str, facts: Mapping[str, Any]) -> None:
        """Ends a request's span with what the log says of it."""
        if span is None:
            return
        span.update_name(name)
        for fact, value in facts.items():
            if isinstance(value, bool | int | float | str):
                span.set_attribute(fact, value)
        span.end()
