"""The scoring core behind every endpoint: texts in, scores or vectors out, through the caches and the engines.

Runs in a worker thread, so the event loop never waits for a model. Work goes to an engine in small chunks; between
two the deadline is asked, and what a chunk gave is kept at once.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline import text
from serving.cache import Cache, Fetched, Key
from serving.deadline import Deadline
from serving.errors import InferenceError

CHUNK = 16
"""Texts given to an engine at a time: large enough to keep its runners busy, small enough that a deadline which
passes meanwhile costs a fraction of a second."""

Role = Literal["query", "document"]
Vector = npt.NDArray[np.float32]
V = TypeVar("V")

log = logging.getLogger(__name__)


class Ranker(Protocol):
    """The part of an engine with a ranker that scoring needs."""

    digest: str
    precision: str

    def scores(self, query: str, documents: Sequence[str]) -> list[float]: ...


class Encoder(Protocol):
    """The part of an engine with an encoder that embedding needs."""

    digest: str
    precision: str

    def embed(self, texts: Sequence[str], role: Role) -> Vector: ...


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of a process; releases share them, as keys name the model."""

    scores: Cache[float]
    vectors: Cache[Vector]

    @classmethod
    def of(cls, max_bytes: int) -> "Caches":
        """Three quarters for scores, which cost most to make again, the rest for vectors."""
        share = max_bytes // 4
        return cls(Cache(max_bytes - share, lambda _: 24), Cache(share, lambda vector: vector.nbytes + 112))


@dataclass(frozen=True, slots=True)
class Reranker:
    """Raw scores of (query, document) pairs."""

    engine: Ranker
    cache: Cache[float]

    def scores(self, query: str, documents: Sequence[str], deadline: Deadline) -> Fetched[float]:
        """One raw score a document, in their order; any finite number, higher is more relevant.

        Raises:
            InferenceError: the model failed on a document; the others are scored and kept all the same.
            DeadlineError, ClientGoneError
        """
        query = text.clean(query)
        documents = [text.clean(document) for document in documents]
        key = Key("score", self.engine.digest, self.engine.precision, query)
        name = f"ranker {self.engine.digest[:8]}, document"

        def run(places: list[int]) -> list[float]:
            return [_finite(score) for score in self.engine.scores(query, [documents[place] for place in places])]

        return self.cache.fetch(
            [key.of(document) for document in documents], lambda places: _chunks(places, run, name, deadline), deadline
        )


@dataclass(frozen=True, slots=True)
class Embedder:
    """Unit vectors of texts."""

    engine: Encoder
    cache: Cache[Vector]

    def vectors(self, texts: Sequence[str], role: Role, deadline: Deadline) -> Fetched[Vector]:
        """One vector (dimensions,) a text, in their order; shared with the cache, so not writable.

        Raises:
            InferenceError: the model failed on a text.
            DeadlineError, ClientGoneError
        """
        texts = [text.clean(item) for item in texts]
        key = Key("vector", self.engine.digest, self.engine.precision, role)
        name = f"encoder {self.engine.digest[:8]}, {role}"

        def run(places: list[int]) -> list[Vector]:
            # Each its own copy: a row of a batch would keep the whole batch in memory.
            found = [row.copy() for row in self.engine.embed([texts[place] for place in places], role)]
            for vector in found:
                _finite(float(np.abs(vector).max(initial=0.0)))
                vector.flags.writeable = False
            return found

        return self.cache.fetch(
            [key.of(item) for item in texts], lambda places: _chunks(places, run, name, deadline), deadline
        )


def relevance(score: float) -> float:
    """A raw score as clients see it, in [0, 1]: its sigmoid."""
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    grown = math.exp(score)
    return grown / (1.0 + grown)


def _chunks(
    places: list[int], run: Callable[[list[int]], list[V]], name: str, deadline: Deadline
) -> Iterator[tuple[int, V | Exception]]:
    """Each place with what `run` gives for it; where a chunk fails, its texts are run again one by one."""
    for start in range(0, len(places), CHUNK):
        deadline.check()
        chunk = places[start : start + CHUNK]
        try:
            yield from zip(chunk, run(chunk), strict=True)
            continue
        except Exception:
            log.warning("%s: a chunk of %d failed; running each alone", name, len(chunk), exc_info=True)
        for place in chunk:
            deadline.check()
            try:
                (value,) = run([place])
            except Exception:
                log.exception("%s %d: failed", name, place)
                yield place, InferenceError(f"{name} {place}: the model gave no usable answer for this text")
            else:
                yield place, value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise InferenceError(f"the model gave {value}")
    return value
