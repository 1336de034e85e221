import sys
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.errors import MissingError
from serving.api import app as apps
from serving.observability.tracing import Tracing


@pytest.fixture
def spans() -> Any:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed; extra otel")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return kept, Tracing(provider.get_tracer("test"))


def test_a_request_is_a_span_of_its_callers_trace_with_its_parts_and_no_text(started: Any, spans: Any) -> None:
    kept, tracing = spans
    client = TestClient(apps.create(started(), tracing=tracing))
    caller = f"00-{'ab' * 16}-{'cd' * 8}-01"
    client.post("/rerank", json={"query": "secretq", "texts": ["secretd", "b"]}, headers={"traceparent": caller})
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert set(spans) == {"POST /rerank", "queue", "work"}
    request = spans["POST /rerank"]
    assert request.context.trace_id == int("ab" * 16, 16)
    assert request.parent.span_id == int("cd" * 8, 16)
    assert (request.attributes["http.status_code"], request.attributes["items"]) == (200, 2)
    for name in ("queue", "work"):
        assert spans[name].parent.span_id == request.context.span_id
        assert request.start_time <= spans[name].start_time <= spans[name].end_time <= request.end_time
    assert "secret" not in "".join(span.to_json() for span in kept.get_finished_spans())


def test_a_collector_without_the_package_is_an_error_that_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingError, match=r"search-relevance\[otel\]"):
        Tracing.to("http://127.0.0.1:1/v1/traces")
    assert Tracing.to("").request("GET", {}) is None
