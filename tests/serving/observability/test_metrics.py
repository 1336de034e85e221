"""The series of the metrics."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from tests.serving.patience import patient
from tests.serving.processes import start

RELEASES = 6


def releases(text: str) -> dict[str, float]:
    """Release and value of each series of `relevance_release_info`."""
    lines = [line for line in text.splitlines() if line.startswith("relevance_release_info{")]
    return {line.split('release="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_the_series_of_a_release_ends_with_the_release(fresh: Any) -> None:
    published = [fresh.publish(seed) for seed in range(1, RELEASES)]
    fresh.releases.promote(published[0], reason="test")
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1))
    lifecycle.start()
    client = TestClient(apps.create(lifecycle))
    for release in published:
        if release != published[0]:
            fresh.releases.promote(release, reason="test")
            lifecycle.poll()
        assert releases(client.get("/metrics").text) == {release: 1.0}
    lifecycle.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_series_that_processes_share_end_with_the_release(fresh: Any) -> None:
    first, second = fresh.publish(1), fresh.publish(2)
    fresh.releases.promote(first, reason="test")
    server = start(fresh.path, RELEVANCE_WORKERS="2", RELEVANCE_POLL_S="0.05")
    shown = {}
    fresh.releases.promote(second, reason="test")
    for _ in range(2000):
        shown = releases(httpx.get(f"{server.url}/metrics", timeout=60).text)
        if shown.get(second) == 2:
            break
    assert shown == {second: 2.0}
    assert server.stop() == 0
