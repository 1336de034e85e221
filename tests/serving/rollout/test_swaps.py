"""Releases swapped under load, in another process and over HTTP; tests/benchmarks/test_swaps.py does it more often."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from serving.api import app as apps
from serving.api import keys
from serving.rollout.lifecycle import Lifecycle
from serving.runtime.items import Item
from tests.serving import swaps
from tests.serving.patience import patient
from tests.serving.processes import start


def test_no_request_is_lost_and_every_score_is_of_the_release_it_names(fresh: Any) -> None:
    releases = swaps.releases_of(fresh, 3)
    server = start(fresh.path, RELEVANCE_POLL_S="0.02")
    load, _ = swaps.swap_under_load(server, fresh, releases, 10)
    assert server.stop() == 0
    assert load.faults == []
    assert set(load.answers) == set(releases)


def test_a_request_ends_with_the_release_it_began_with(fresh: Any, monkeypatch: Any) -> None:
    old, new = swaps.releases_of(fresh, 2)
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60, kept_releases=0))
    lifecycle.start()
    began, go = threading.Event(), threading.Event()
    real = lifecycle.current.ranker.run

    def slow(items: Sequence[Item]) -> Any:
        began.set()
        assert go.wait(60)
        return real(items)

    monkeypatch.setattr(lifecycle.current.ranker, "run", slow)
    body = {"query": "list 1", "texts": swaps.TEXTS, "raw_scores": True}
    with TestClient(apps.create(lifecycle)) as client, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.post, "/rerank", json=body)
        assert began.wait(60)
        fresh.releases.promote(new, reason="test")
        swapping = threading.Thread(target=lifecycle.poll)  # Its golden check waits for the one runner.
        swapping.start()
        go.set()
        swapping.join(60)
        first, second = pending.result(10), client.post("/rerank", json=body)
    for response, release in ((first, old), (second, new)):
        assert response.headers["x-release"] == release
        scores = {item["index"]: item["score"] for item in response.json()}
        expected = swaps.scores(fresh, release, "1")
        assert [scores[index] for index in range(4)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "q", "texts": ["a"]}),
        ("/rerank", {"query": "q", "texts": ["a"], "cascade": True}),
        ("/v1/rerank", {"query": "q", "documents": ["a"]}),
        ("/v2/rerank", {"query": "q", "documents": ["a"]}),
        ("/search", {"query": "q"}),
        ("/embed", {"inputs": "a"}),
        ("/v1/embeddings", {"input": "a"}),
    ],
)
def test_every_answer_names_what_made_it(started: Any, path: str, body: Any) -> None:
    lifecycle = started()
    with TestClient(apps.create(lifecycle)) as client:
        response = client.post(path, json=body)
    assert response.status_code == 200
    assert (response.headers["x-release"], response.headers["x-variant"]) == (lifecycle.current.release, "live")


def test_all_workers_follow_a_canary(fresh: Any) -> None:
    live, other = swaps.releases_of(fresh, 2)
    key, known = keys.make()
    server = start(fresh.path, RELEVANCE_POLL_S="0.05", RELEVANCE_WORKERS="2", RELEVANCE_ADMIN_KEYS=known)
    admin = {"authorization": f"Bearer {key}"}

    def answering(times: int = 12) -> set[str]:
        """The releases that answer over connections of their own, of which both workers get some."""
        return {httpx.get(f"{server.url}/search?q=list", timeout=60).headers["x-release"] for _ in range(times)}

    def until(release: str) -> None:
        for _ in range(100):
            if answering() == {release}:
                return
        raise AssertionError(answering())

    try:
        assert answering() == {live}
        begun = httpx.put(f"{server.url}/admin/canary", json={"release": other, "share": 1}, headers=admin, timeout=60)
        assert begun.status_code == 200, begun.text
        until(other)
        assert httpx.delete(f"{server.url}/admin/canary", headers=admin, timeout=60).status_code == 200
        until(live)
    finally:
        assert server.stop() == 0
