"""Memory stays where it is, however many requests come."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.processes import start

WARM = 300
GROWN_KB = 8 * 1024
"""A leak of a kilobyte a request would show twice over in the quick test; caches are bounded below this."""


def resident_kb(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def grown(tiny: Any, requests: int) -> int:
    """Kilobytes that a service gained over a number of requests, each for documents never seen before."""
    server = start(tiny.path, RELEVANCE_CACHE_BYTES=str(2**20))
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:

            def ask(turn: int) -> None:
                body = {"query": f"q {turn}", "texts": [f"sorted list {turn}", "open file"]}
                assert client.post("/rerank", json=body).status_code == 200
                if turn % 10 == 0:
                    assert client.post("/rerank", content=b"{" * 1000).status_code == 400
                    assert client.post("/embed", json={"inputs": [f"text {turn}"]}).status_code == 200

            for turn in range(WARM):
                ask(turn)
            (worker,) = server.workers
            before = resident_kb(worker)
            for turn in range(WARM, WARM + requests):
                ask(turn)
            return resident_kb(worker) - before
    finally:
        assert server.stop() == 0


pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see memory")


def test_memory_is_flat_over_two_thousand_requests(tiny: Any) -> None:
    assert grown(tiny, 2000) < GROWN_KB


@pytest.mark.benchmark
def test_memory_is_flat_over_a_hundred_thousand_requests(tiny: Any) -> None:
    kilobytes = grown(tiny, 100_000)
    print(f"grew by {kilobytes:,} kB over 100,000 requests")
    assert kilobytes < 4 * GROWN_KB
