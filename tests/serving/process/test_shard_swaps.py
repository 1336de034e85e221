"""Releases of shards and of the service that asks them are swapped at different moments: each answer is of one."""

import time
from collections.abc import Iterator

import httpx
import pytest

from flows import gc
from tests.serving import processes
from tests.serving.shard_swaps import COUNT, Machines
from tests.serving.swaps import seconds_until


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    started = Machines.start(tmp_path_factory.mktemp("machines"), 3)
    yield started
    started.stop()


def test_ten_swaps_in_any_order(machines: Machines) -> None:
    """Seed 3."""
    counts, _ = machines.swap_under_load(10, seed=3)
    assert counts.faults == []
    assert set(counts.complete) == {version.releases[-1] for version in machines.versions}
    assert counts.partial.total() < counts.complete.total() / 10


def test_a_release_waits_until_its_shards_answer_and_gc_keeps_what_is_served(machines: Machines) -> None:
    url = machines.servers[-1].url
    live = httpx.get(f"{url}/livez", timeout=60).headers["x-release"]
    number = [version.releases[-1] for version in machines.versions].index(live)
    now, wanted = machines.versions[number], machines.versions[(number + 1) % len(machines.versions)]
    for machine in (COUNT, 0):  # The asking service and one shard of two.
        machines.move(machine, wanted)
    machines.servers[-1].logged(lambda line: "of its 2 shards answer, and 2 of the live" in str(line.get("message")))
    until = time.monotonic() + 60
    while "1 of its 2 shards answer" not in httpx.get(f"{url}/readyz", timeout=60).text:
        assert time.monotonic() < until
    answer = httpx.post(f"{url}/search", json={"query": "sort a list"}, timeout=60).json()
    assert (answer["release"], answer["partial"]) == (now.releases[-1], False)
    for machine in (COUNT, 0):
        assert gc.gc(machines.registries[machine].workspace, keep=0, act=True)["items"]
    answer = httpx.post(f"{url}/search", json={"query": "open a file"}, timeout=60).json()
    assert (answer["release"], answer["partial"]) == (now.releases[-1], False)
    machines.move(1, wanted)
    with httpx.Client(base_url=url, timeout=60) as client:
        seconds_until(client, wanted.releases[-1])
    answer = httpx.post(f"{url}/search", json={"query": "open a file"}, timeout=60).json()
    assert (answer["release"], answer["partial"]) == (wanted.releases[-1], False)


def test_a_shard_that_restarts_with_another_release_is_named_until_it_is_back(machines: Machines) -> None:
    front, port, registry = machines.servers[-1], machines.servers[1].port, machines.registries[1]
    live = httpx.get(f"{front.url}/livez", timeout=60).headers["x-release"]
    right = next(version.releases[1] for version in machines.versions if version.releases[-1] == live)
    shards = [version.releases[1] for version in machines.versions]
    wrong = next(release for release in shards if release != right and release in registry.ids())
    machines.servers[1].stop()

    def missing() -> list[dict[str, str]]:
        answer = httpx.post(f"{front.url}/search", json={"query": "sort a list"}, timeout=60).json()
        shown: list[dict[str, str]] = answer["shards"]["missing"]
        assert answer["partial"] is bool(shown)
        return shown

    assert [item["shard"] for item in missing()] == [f"http://127.0.0.1:{port}"]
    for release, reason in ((wrong, "HTTP 404: no loaded release holds a shard of collection"), (right, "")):
        machines.servers[1] = processes.start(registry.workspace, RELEVANCE_RELEASE=release, RELEVANCE_PORT=str(port))
        assert [item["reason"].startswith(reason) for item in missing()] == [True] * bool(reason)
        if reason:
            machines.servers[1].stop()
