"""Models that do as a test says, behind a real scheduler."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.runtime.deadline import Deadline
from serving.runtime.items import Item, Priority, Throughput
from serving.runtime.job import Job
from serving.runtime.scheduler import Scheduler
from tests.serving.patience import Clock

Says = Callable[[str], Any]


class FakeEngine:
    """A ranker and encoder whose token ids are characters, and whose output is what `says` gives for the text."""

    def __init__(self, says: Says, *, identity: str = "d1 fp32", runners: int = 1, run_tokens: int = 0) -> None:
        self.identity = identity
        self.pace = Throughput()
        self.scheduler = Scheduler(runners)
        self.run_tokens, self.bucket_tokens = run_tokens, 1
        self.says = says
        self.runs: list[list[str]] = []
        self.remembered: list[bool] = []

    def pairs(
        self,
        query: str,
        documents: Sequence[str],
        *,
        remember: bool = True,
        check: Callable[[], None] | None = None,
    ) -> list[Item]:
        self.remembered.append(remember)
        return [Item([ord(character) for character in f"{query}|{document}"]) for document in documents]

    def texts(
        self, texts: Sequence[str], role: str, *, remember: bool = True, check: Callable[[], None] | None = None
    ) -> list[Item]:
        return self.pairs(role, texts, remember=remember, check=check)

    def job(self, deadline: Deadline, priority: Priority = Priority.ONLINE) -> Job:
        return self.scheduler.job(self, deadline, priority)

    def run(self, items: Sequence[Item]) -> list[Any]:
        texts = ["".join(map(chr, item.ids)) for item in items]
        self.runs.append(texts)
        return [self.says(text) for text in texts]


def length(text: str) -> float:
    """Length of the query times that of the document."""
    query, document = text.split("|")
    return float(len(query) * len(document))


def two(text: str) -> Any:
    """A vector of a text and its role."""
    role, words = text.split("|")
    return np.array([len(words), len(role)], np.float32)


def until_late(clock: Clock, free: int) -> Any:
    """Scores the first documents in time; with the next one every deadline passes."""
    begun = itertools.count()

    def says(text: str) -> float:
        if next(begun) >= free:
            clock.ahead_s = 1000.0
        return length(text)

    return says
