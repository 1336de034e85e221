"""Machines that each serve a shard or ask the shards, whose releases are swapped at different moments under queries."""

import itertools
import os
import random
import shutil
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from flows import shards, sources
from index.shards import shard_of
from pipeline.releases import Releases
from serving.scoring.searcher import Searcher
from tests.serving import processes
from tests.serving.conftest import TinyWorkspace
from tests.serving.divided_collection import LocalShards, searcher_of
from tests.serving.processes import Server
from tests.serving.swaps import clients, seconds_until

COUNT = 2
CLIENTS = 3
TOLERANCE = 1e-5
QUERIES = ("sort a list", "open a file", "读 列表", "function 3 words", "json document", "clock sleep", "lately")
Scores = dict[str, dict[str, float]]
"""List of a search → document → score."""


@dataclass(frozen=True)
class Version:
    """A divided release: what each machine serves, and what its searches answer."""

    releases: tuple[str, ...]
    """Fingerprints: the shards' releases, then the release that asks them."""
    expected: dict[str, Scores]
    """Query → the lists of the first 10 documents."""


@dataclass
class AnswerCounts:
    """The answers that the clients got."""

    complete: Counter[str] = field(default_factory=Counter)
    """Number of answers of all shards by release."""
    partial: Counter[str] = field(default_factory=Counter)
    """Number of answers that name a shard as missing, by the reason."""
    faults: list[str] = field(default_factory=list)


@dataclass
class Machines:
    """A service for each shard and one that asks them, each over a workspace of its own, as if they were far apart."""

    folder: Path
    versions: list[Version]
    registries: list[Releases] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)

    @classmethod
    def start(cls, folder: Path, versions: int) -> "Machines":
        """Makes versions that differ in documents and models, and starts the services with the first."""
        tiny = TinyWorkspace(folder / "workspace")
        machines = cls(folder, [version(tiny, folder, number) for number in range(1, versions + 1)])
        for number in range(COUNT + 1):
            workspace = folder / f"machine-{number}"
            shutil.copytree(
                tiny.path / "artifacts",
                workspace / "artifacts",
                copy_function=os.link,
                ignore=shutil.ignore_patterns(".*"),  # Locks are of one workspace.
            )
            machines.registries.append(Releases(workspace))
            machines.move(number, machines.versions[0])
            environ = {"RELEVANCE_POLL_S": "0.02"}
            if number == COUNT:
                environ["RELEVANCE_SHARDS"] = ",".join(server.url for server in machines.servers)
            machines.servers.append(processes.start(workspace, **environ))
        return machines

    def move(self, machine: int, wanted: Version) -> None:
        """Makes the release of a version live on one machine."""
        self.registries[machine].promote(wanted.releases[machine], reason="test")

    def stop(self) -> list[int]:
        return [server.stop() for server in reversed(self.servers)]

    def swap_under_load(self, swaps: int, seed: int) -> tuple[AnswerCounts, float]:
        """Moves the pointers of all machines this many times, in random order with random pauses.

        Returns:
            The clients' answers, and the seconds of the median swap: from the last pointer's move to the first answer.
        """
        generator, counts, done = random.Random(seed), AnswerCounts(), threading.Event()
        threads = [threading.Thread(target=self._ask, args=(counts, done, number)) for number in range(CLIENTS)]
        took = []
        with clients(threads, done), httpx.Client(base_url=self.servers[-1].url, timeout=60) as client:
            for wanted in itertools.islice(itertools.cycle([*self.versions[1:], self.versions[0]]), swaps):
                for machine in generator.sample(range(COUNT + 1), COUNT + 1):
                    self.move(machine, wanted)
                    time.sleep(generator.choice((0.0, 0.02, 0.1)))
                took.append(seconds_until(client, wanted.releases[-1]))
        return counts, statistics.median_high(took)

    def _ask(self, counts: AnswerCounts, done: threading.Event, number: int) -> None:
        expected = {item.releases[-1]: item.expected for item in self.versions}
        addresses = [server.url for server in self.servers]
        with httpx.Client(base_url=addresses[-1], timeout=60) as client:
            for query in itertools.cycle(QUERIES[number:] + QUERIES[:number]):
                if done.is_set():
                    return
                try:
                    response = client.post("/search", json={"query": query})
                    answer = response.json()
                    assert response.status_code == 200, answer
                    gone = [addresses.index(item["shard"]) for item in answer["shards"]["missing"]]
                    assert answer["partial"] is bool(gone)
                    check(answer, expected[answer["release"]][query], gone)
                except Exception as error:
                    counts.faults.append(repr(error))
                    continue
                if gone:
                    counts.partial[answer["shards"]["missing"][0]["reason"]] += 1
                else:
                    counts.complete[answer["release"]] += 1


def check(answer: dict[str, Any], expected: Scores, gone: list[int]) -> None:
    """Compares an answer with that of its version; where shards are missing, the documents of the others alone.

    Args:
        gone: numbers of the shards that the answer names as missing.
    """
    for name, scores in expected.items():
        listed = {hit["doc_id"]: hit["score"] for hit in answer[name]}
        assert not [doc_id for doc_id in listed if shard_of(doc_id, COUNT) in gone], name
        if gone and name == "reranked":
            continue  # Its scores depend on the other candidates.
        wanted = {doc_id: score for doc_id, score in scores.items() if shard_of(doc_id, COUNT) not in gone}
        assert wanted.keys() <= listed.keys() if gone else list(wanted) == list(listed), (name, gone)
        assert all(abs(listed[doc_id] - score) <= TOLERANCE for doc_id, score in wanted.items()), (name, gone)


def version(tiny: TinyWorkspace, folder: Path, number: int) -> Version:
    """Publishes models of this seed over documents with a word of their own, divided."""
    undivided = tiny.publish(number)
    source = tiny.source(folder / f"documents-{number}", "lately " * number)
    figures = shards.reindex(sources.named(source), tiny.path, COUNT, release=undivided)
    held = [shard["release"] for shard in figures["shards"]]
    front = searcher_of(
        tiny.folder(figures["release"]), LocalShards([Searcher(tiny.folder(release)) for release in held])
    )
    expected = {}
    for query in QUERIES:
        result = front.search(query)
        expected[query] = {
            name: {hit.doc_id: hit.score for hit in getattr(result, name)}
            for name in ("lexical", "semantic", "reranked")
        }
    return Version((*held, figures["release"]), expected)
