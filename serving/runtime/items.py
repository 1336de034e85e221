"""Inputs of a model, their priority, and the interface of a model that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol


class Priority(IntEnum):
    """The class of a request; a lower one goes first."""

    PROBE = -1
    """A check that a model answers at all; goes before all that waits."""
    ONLINE = 0
    BATCH = 1


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a model at its exact length."""

    ids: Sequence[int]
    """(tokens,), special tokens included."""
    types: Sequence[int] = ()
    """(tokens,) segments; empty where all are 0."""


class Throughput:
    """Throughput of one runner on a model's inputs: an exponential mean over its latest runs."""

    KEPT = 0.98
    """Weight of the past at each run, so that about the last fifty count."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def ran(self, tokens: int, seconds: float) -> None:
        self._tokens = self.KEPT * self._tokens + tokens
        self._seconds = self.KEPT * self._seconds + seconds

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second of one runner; None before the first run."""
        return self._tokens / self._seconds if self._seconds > 0 else None

    def seconds(self, tokens: float) -> float:
        """Seconds that one runner takes for this many tokens; 0 before the first run, when nothing is known."""
        return tokens * self._seconds / self._tokens if self._tokens > 0 else 0.0


class ScoringModel(Protocol):
    """The interface of a model that a runner needs."""

    pace: Throughput
    run_tokens: int
    """Padded tokens of one run; 0 for one input a run, unpadded."""
    bucket_tokens: int
    """Multiple that lengths are rounded up to where a run holds several inputs."""

    def run(self, items: Sequence[Item]) -> Sequence[Any]:
        """One output for each input, or the Exception that this one input met.

        Raises:
            Exception: the run failed as a whole.
        """


def rounded_up(length: int, bucket: int) -> int:
    """The length to which an input is padded: the next multiple of `bucket`."""
    return -(-length // bucket) * bucket
