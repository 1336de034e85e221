"""The service over HTTP when models fail, hang or have more to do than time allows."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from serving.api import app as apps
from serving.process import listener as listeners
from serving.rollout import readiness
from serving.rollout.lifecycle import Lifecycle
from serving.runtime.items import Item
from serving.settings import Settings
from tests.serving.metrics_text import series


def client_of(lifecycle: Lifecycle) -> TestClient:
    return TestClient(apps.create(lifecycle))


def rerank(client: TestClient, *texts: str, **headers: str) -> httpx.Response:
    return client.post("/rerank", json={"query": "q", "texts": list(texts)}, headers=headers)


class Session:
    """A session that does what the test says for inputs longer than 20 tokens."""

    def __init__(self, real: Any, does: Callable[[Any], Any]) -> None:
        self.real, self.does = real, does

    def run(self, names: list[str], feeds: Any) -> Any:
        outputs = self.real.run(names, feeds)
        return self.does(outputs) if feeds["input_ids"].shape[1] > 20 else outputs


BAD = "a list " * 12


def broken(lifecycle: Lifecycle, monkeypatch: Any, does: Callable[[Any], Any]) -> None:
    ranker = lifecycle.current.ranker
    monkeypatch.setattr(ranker, "_session", Session(ranker._session, does))


def end(_: Any) -> Any:
    raise SystemExit("the thread ends")


def raises(_: Any) -> Any:
    raise RuntimeError("out of memory")


def no_number(outputs: Any) -> Any:
    return [np.full_like(outputs[0], np.nan)]


@pytest.mark.parametrize("does", [raises, no_number, end])
def test_a_session_that_fails_harms_its_request_only_and_is_never_cached(
    started: Any, monkeypatch: Any, does: Any
) -> None:
    lifecycle = started()
    client = client_of(lifecycle)
    broken(lifecycle, monkeypatch, does)
    for _ in range(2):
        response = rerank(client, "fine", BAD, "good")
        assert response.status_code == 500
        assert "document 1" in response.json()["message"]
        assert "memory" not in response.text
    assert rerank(client, "fine", "good", "new").headers["x-cache"] == "partial, 2/3"
    assert client.get("/readyz").status_code == 200
    monkeypatch.undo()
    assert rerank(client, BAD).headers["x-cache"] == "miss, 0/1"
    assert lifecycle.scheduler.stats().replaced == (2 if does is end else 0)


def test_requests_beside_a_failing_one_are_answered(started: Any, monkeypatch: Any) -> None:
    lifecycle = started()
    broken(lifecycle, monkeypatch, end)
    app = apps.create(lifecycle)

    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            bodies = [{"query": "q", "texts": [f"text {number}", *([BAD] if number % 5 == 0 else [])]}
                      for number in range(20)]  # fmt: skip
            answers = await asyncio.gather(*(client.post("/rerank", json=body) for body in bodies))
            return [response.status_code for response in answers]

    statuses = asyncio.run(all_at_once())
    assert [status for number, status in enumerate(statuses) if number % 5] == [200] * 16
    # Those that share the bad document share its one computation, or try it again by themselves.
    assert set(statuses[::5]) == {500}


def test_a_stalled_session_is_a_504_and_not_ready_until_it_comes_back(started: Any, monkeypatch: Any) -> None:
    lifecycle, go = started(), threading.Event()
    client = client_of(lifecycle)

    def stall(outputs: Any) -> Any:
        go.wait(60)
        return outputs

    broken(lifecycle, monkeypatch, stall)
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.2)
    assert rerank(client, "cached").status_code == 200
    while not lifecycle.scheduler.present_runs():  # A busy machine may not begin a run within a deadline.
        assert rerank(client, BAD, **{"x-request-timeout-ms": "300"}).status_code == 504
    assert not go.is_set()  # The answer did not wait for the run.
    while lifecycle.scheduler.stalled_s() <= readiness.PATIENCE_S:
        time.sleep(0.01)
    refused = client.get("/readyz")
    assert (refused.status_code, refused.json()["ready"]) == (503, False)
    assert "a runner has not come back" in refused.json()["message"]
    assert client.get("/livez").status_code == 200
    assert rerank(client, "cached").status_code == 200  # What is known needs no runner.
    assert rerank(client, "another", **{"x-request-timeout-ms": "100"}).status_code in (429, 504)
    go.set()
    until = time.monotonic() + 60
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert rerank(client, "another").status_code == 200


def test_more_than_can_be_done_is_a_429_before_any_work(started: Any, monkeypatch: Any) -> None:
    lifecycle = started(max_deadline_s=60)
    client, began, go = client_of(lifecycle), threading.Event(), threading.Event()
    assert rerank(client, "known").status_code == 200
    ranker, real = lifecycle.current.ranker, lifecycle.current.ranker.run

    def run(items: Sequence[Item]) -> Any:
        began.set()
        assert go.wait(60)
        return real(items)

    monkeypatch.setattr(ranker, "run", run)
    long = threading.Thread(
        target=lambda: rerank(client, *(f"text {number}" for number in range(50)), **{"x-request-timeout-ms": "60000"})
    )
    long.start()
    assert began.wait(60)
    while lifecycle.scheduler.stats().items < 49:
        time.sleep(0.001)
    waiting = lifecycle.scheduler.stats()
    ranker.pace.ran(waiting.tokens * 100, 8000.0)  # As if what waits took 80 s.
    wait = lifecycle.scheduler.wait_s()
    assert wait == pytest.approx(80, rel=0.05)
    text = client.get("/metrics").text
    assert f"te_queue_size {waiting.items}.0" in text
    assert f"relevance_queue_tokens {waiting.tokens}.0" in text
    response = rerank(client, "new", "known", **{"x-request-timeout-ms": "60000"})
    assert response.status_code == 429
    assert response.headers["retry-after"].isdigit()
    assert 20 <= int(response.headers["retry-after"]) <= 27
    assert response.json()["type"] == "overloaded"
    assert lifecycle.scheduler.stats().items == waiting.items
    assert rerank(client, "known").headers["x-cache"] == "hit, 1/1"
    assert "retry-after" not in rerank(client, "known").headers
    body = {"query": "q", "texts": ["new", "known"], "cascade": True}
    in_time = client.post("/rerank", json=body, headers={"x-request-timeout-ms": "200"})
    assert [item["reranked"] for item in in_time.json()] == [True, False]
    go.set()
    long.join(60)
    assert rerank(client, "new").status_code == 200
    counters = series(client.get("/metrics").text)
    assert counters['te_request_failure{err="overloaded"}'] == 1
    assert (counters["te_queue_size"], counters["relevance_queue_tokens"]) == (0, 0)
    assert counters["relevance_runner_runs_total"] == lifecycle.scheduler.stats().runs
    assert counters['relevance_tokens_per_second{model="ranker"}'] > 0
    assert counters["relevance_longest_run_seconds"] == 0


def test_no_store_is_honoured(started: Any) -> None:
    lifecycle = started()
    client = client_of(lifecycle)
    known = [model.tokeniser.bytes for model in (lifecycle.current.ranker, lifecycle.current.encoder)]
    private = {"cache-control": "no-cache, No-Store"}
    for _ in range(2):
        response = rerank(client, "a text", **private)
        assert (response.status_code, response.headers["x-cache"]) == (200, "bypass, 0/1")
    assert lifecycle.caches.scores.stats().entries == 0
    for path, body in (("/embed", {"inputs": "a text"}), ("/v1/embeddings", {"input": "a text"}),
                       ("/v1/rerank", {"query": "q", "documents": ["a text"]})):  # fmt: skip
        assert client.post(path, json=body, headers=private).headers["x-cache"] == "bypass, 0/1"
    assert [model.tokeniser.bytes for model in (lifecycle.current.ranker, lifecycle.current.encoder)] == known
    assert rerank(client, "a text").headers["x-cache"] == "miss, 0/1"
    assert rerank(client, "a text", "other").headers["x-cache"] == "partial, 1/2"
    assert rerank(client, "a text").headers["x-cache"] == "hit, 1/1"


def test_a_client_that_leaves_frees_what_it_had_in_the_queue(started: Any, monkeypatch: Any) -> None:
    lifecycle, began, go = started(), threading.Event(), threading.Event()
    app = apps.create(lifecycle)
    real = lifecycle.current.ranker.run

    def run(items: Sequence[Item]) -> Any:
        began.set()
        assert go.wait(60)
        return real(items)

    monkeypatch.setattr(lifecycle.current.ranker, "run", run)

    async def leave() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            body = {"query": "q", "texts": [f"text {number}" for number in range(100)]}
            headers = {"x-request-timeout-ms": "20000"}
            request = asyncio.create_task(client.post("/rerank", json=body, headers=headers))
            while lifecycle.scheduler.stats().items != 99 or not began.is_set():
                await asyncio.sleep(0.005)
            request.cancel()
            while lifecycle.scheduler.stats().items:
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(leave(), 60))
    assert lifecycle.scheduler.stats().cancelled == 99
    go.set()
    assert rerank(client_of(lifecycle), "text 1").status_code == 200


def test_the_second_packet_of_an_answer_does_not_wait_for_the_first(tmp_path: Any) -> None:
    with (
        listeners.listen(Settings(workspace=tmp_path, port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
