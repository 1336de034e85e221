"""Clients that call a service while its releases are swapped, and compare each answer with the release it names."""

import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.serving.processes import Server

TEXTS = ["Shuffle list x in place", "Return a new sorted list", "Open file and return a stream", "a list of words"]
TOLERANCE = 1e-5
CLIENTS = 4


@dataclass
class Load:
    """The answers that the clients got."""

    answers: Counter[str] = field(default_factory=Counter)
    """Number of answers by release."""
    faults: list[str] = field(default_factory=list)


@contextmanager
def clients(threads: Sequence[threading.Thread], done: threading.Event) -> Iterator[None]:
    """Runs the threads of clients, which end once `done` is set."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(60)


def seconds_until(client: httpx.Client, release: str) -> float:
    """Seconds that pass until a service answers with a release; fails after 60."""
    began = time.monotonic()
    while client.get("/livez").headers["x-release"] != release:
        assert time.monotonic() - began < 60, client.get("/readyz").text
    return time.monotonic() - began


def swap_under_load(server: Server, workspace: Any, releases: list[str], swaps: int) -> tuple[Load, float]:
    """Moves the pointer this many times, each time once the service answers with the release that it names.

    Returns:
        The clients' answers, and the seconds of the median swap: from the pointer's move to the first answer.
    """
    expected = {release: {query: scores(workspace, release, query) for query in map(str, range(50))}
                for release in releases}  # fmt: skip
    load, done = Load(), threading.Event()
    threads = [threading.Thread(target=ask, args=(server.url, expected, load, done, number), daemon=True)
               for number in range(CLIENTS)]  # fmt: skip
    took = []
    with clients(threads, done), httpx.Client(base_url=server.url, timeout=60) as client:
        for release in itertools.islice(itertools.cycle([*releases[1:], releases[0]]), swaps):
            workspace.releases.promote(release, reason="test")
            took.append(seconds_until(client, release))
    return load, statistics.median_high(took)


def scores(workspace: Any, release: str, query: str) -> list[float]:
    return [workspace.models[release].score(f"list {query}", text) for text in TEXTS]


def ask(url: str, expected: Any, load: Load, done: threading.Event, number: int) -> None:
    """One client, whose requests vary and repeat, so that some answers come out of the cache."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for turn in itertools.count(number):
            if done.is_set():
                return
            query = str(turn % 50)
            body = {"query": f"list {query}", "texts": TEXTS, "raw_scores": True}
            try:
                response = client.post("/rerank", json=body, headers={"x-request-timeout-ms": "30000"})
                release = response.headers["x-release"]
                answer = {item["index"]: item["score"] for item in response.json()}
                gaps = [abs(answer[index] - score) for index, score in enumerate(expected[release][query])]
            except Exception as error:
                load.faults.append(repr(error))
                continue
            load.answers[release] += 1
            if response.status_code != 200 or max(gaps) > TOLERANCE:
                load.faults.append(f"{response.status_code}, {max(gaps)} from the scores of {release}")


def releases_of(workspace: Any, count: int) -> list[str]:
    """Publishes this many releases with different weights and makes the first live."""
    releases = [workspace.publish(seed) for seed in range(1, count + 1)]
    workspace.releases.promote(releases[0], reason="test")
    return releases
