"""What the models have already said, kept in memory under keys that name the model and the texts.

A key is a hash of the model's digest (tokenizer, templates, weights), its precision, and each text with its length
before it. So another release, or a changed document, is another key: nothing is ever flushed, an old score
can never answer for a new model, and a rollback finds its entries as it left them.

The texts are hashed as the model reads them: after `pipeline.text.clean`, not case folded, because a model may
tell cases apart and a score must not depend on who asked first.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachetools import LRUCache

from serving.deadline import Deadline

V = TypeVar("V")

ENTRY_BYTES = 264
"""Of one entry beside its value: key, node and two dictionary slots; measured with tracemalloc on CPython 3.11."""


class Key:
    """Makes keys that share a beginning, such as the model and the query of many documents."""

    def __init__(self, *parts: str) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        _feed(self._hash, parts)

    def of(self, *parts: str) -> bytes:
        """The 16 bytes for the beginning and these parts."""
        found = self._hash.copy()
        _feed(found, parts)
        return found.digest()


def _feed(found: "hashlib.blake2b", parts: Iterable[str]) -> None:
    for part in parts:
        data = part.encode()
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)


@dataclass(frozen=True, slots=True)
class Fetched(Generic[V]):
    """Values in the order of their keys, and where they came from."""

    values: list[V]
    hits: int
    """Read from memory, or computed for another request at the same moment."""
    misses: int
    """Computed for this request."""


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """Counts since the start, and the present size."""

    hits: int
    joined: int
    """Not in memory, but another request was computing it already."""
    misses: int
    evictions: int
    entries: int
    bytes: int


class _AbandonedError(Exception):
    """The request that was computing a value gave up on it."""


class Cache(Generic[V]):
    """Values bounded by bytes, the least recently used leaving first; each is computed once however many ask.

    Safe to use from many threads.
    """

    def __init__(self, max_bytes: int, weigh: Callable[[V], int]) -> None:
        self._lock = threading.Lock()
        self._kept: _CountingLRU[V] = _CountingLRU(max_bytes, lambda value: ENTRY_BYTES + weigh(value))
        self._flying: dict[bytes, Future[V]] = {}
        self._hits = self._joined = self._misses = 0

    def fetch(
        self,
        keys: Sequence[bytes],
        compute: Callable[[list[int]], Iterable[tuple[int, V | Exception]]],
        deadline: Deadline,
    ) -> Fetched[V]:
        """The value of each key: from memory, from another request that is computing it now, or computed.

        Args:
            keys: may repeat.
            compute: gets the places in `keys` to compute and yields each place with its value, or with the error
                that this one value met. A yielded value is kept at once, so what was computed before a deadline
                is not lost.
            deadline: how long to wait for another request's computation.

        Raises:
            Exception: the first error that `compute` yielded, after all other values were computed and kept.
            DeadlineError, or whatever else `compute` raised.
        """
        found: dict[bytes, V] = {}
        hits = misses = 0
        places = list(range(len(keys)))
        while places:
            mine, others, known = self._claim(keys, places, found)
            hits += known + len(others)
            misses += len(mine)
            self._compute(keys, mine, compute, found)
            places = []
            for place, future in others:
                try:
                    found[keys[place]] = future.result(timeout=min(deadline.remaining, threading.TIMEOUT_MAX))
                except _AbandonedError:
                    hits -= 1
                    places.append(place)  # The one who computed it gave up; it is ours to try now.
                except FutureTimeoutError:
                    deadline.check()
                    raise
        return Fetched([found[key] for key in keys], hits, misses)

    def facts(self) -> CacheFacts:
        with self._lock:
            kept = self._kept
            return CacheFacts(self._hits, self._joined, self._misses, kept.evictions, len(kept), int(kept.currsize))

    def _claim(
        self, keys: Sequence[bytes], places: list[int], found: dict[bytes, V]
    ) -> tuple[list[int], list[tuple[int, Future[V]]], int]:
        """Which of these places to compute, which to wait for, and how many are known; known ones go to `found`."""
        mine: list[int] = []
        own: set[bytes] = set()
        others: list[tuple[int, Future[V]]] = []
        known = 0
        with self._lock:
            for place in places:
                key = keys[place]
                if key in found or key in own:  # A text that this request holds twice.
                    known += 1
                    continue
                value = self._kept.get(key)
                if value is not None:
                    found[key] = value
                    known += 1
                elif key in self._flying:
                    others.append((place, self._flying[key]))
                else:
                    self._flying[key] = Future()
                    own.add(key)
                    mine.append(place)
            self._hits += known
            self._joined += len(others)
            self._misses += len(mine)
        return mine, others, known

    def _compute(
        self,
        keys: Sequence[bytes],
        mine: list[int],
        compute: Callable[[list[int]], Iterable[tuple[int, V | Exception]]],
        found: dict[bytes, V],
    ) -> None:
        if not mine:
            return
        open_keys = {keys[place] for place in mine}
        first: Exception | None = None
        try:
            for place, outcome in compute(mine):
                key = keys[place]
                open_keys.discard(key)
                if isinstance(outcome, Exception):
                    first = first or outcome
                    self._land(key).set_exception(outcome)
                else:
                    found[key] = outcome
                    self._keep(key, outcome)
            if open_keys and first is None:
                raise RuntimeError(f"{len(open_keys)} of {len(mine)} values were not computed")
        finally:
            for key in open_keys:
                self._land(key).set_exception(_AbandonedError())
        if first is not None:
            raise first

    def _keep(self, key: bytes, value: V) -> None:
        with self._lock:
            self._kept.hold(key, value)
            future = self._flying.pop(key)
        future.set_result(value)

    def _land(self, key: bytes) -> Future[V]:
        with self._lock:
            return self._flying.pop(key)


class _CountingLRU(LRUCache[bytes, V]):
    """An LRU that counts what it lets go, and lets a value go by that is larger than the whole."""

    def __init__(self, max_bytes: int, getsizeof: Callable[[V], float]) -> None:
        super().__init__(max_bytes, getsizeof)
        self.evictions = 0

    def hold(self, key: bytes, value: V) -> None:
        if self.getsizeof(value) <= self.maxsize:
            self[key] = value

    def popitem(self) -> tuple[bytes, V]:
        self.evictions += 1
        return super().popitem()
