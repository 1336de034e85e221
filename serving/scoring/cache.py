"""The cache of scores, vectors and token ids, in memory, under keys that name the model and the texts.

A key is a hash of the model's identity (digest of tokenizer, templates and weights; precision; the processor that
rounds), and each text with its length before it. So another release, or a changed document, is another key: nothing is
ever flushed, an old score can never answer for a new model, and a rollback finds its entries as it left them.

The texts are hashed as the model reads them: after `pipeline.text.clean`, not case folded, because a model may
tell cases apart and a score must not depend on who asked first.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cachetools import LRUCache

from serving.errors import DeadlineError, InferenceError
from serving.runtime.admission import RequestOptions
from serving.scoring.redis_cache import Tier

V = TypeVar("V")

log = logging.getLogger(__name__)

ENTRY_BYTES = 264
"""Bytes of one entry beside its value: key, node, two dictionary slots; measured with tracemalloc on CPython 3.11."""


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
class CacheStats:
    """Counts since the start, and the present size."""

    hits: int
    joined: int
    """Not in memory, but another request was computing it already."""
    misses: int
    evictions: int
    entries: int
    bytes: int


@dataclass(slots=True)
class _Progress(Generic[V]):
    """Values that one request has so far."""

    found: dict[bytes, V] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0


class _AbandonedError(Exception):
    """The request that was computing a value gave up on it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Flight(Generic[V]):
    """A value that one request is computing now, and that others may wait for."""

    terms: RequestOptions
    partial: bool
    """It may not be computed at all, as the time does not suffice for the whole request."""
    future: Future[V] = field(default_factory=Future)

    def serves(self, terms: RequestOptions, *, partial: bool) -> bool:
        """Whether it is worked on no later than a request on these terms would be by itself."""
        own, other = self.terms, terms
        return self.partial <= partial and (own.priority, own.deadline.until) <= (other.priority, other.deadline.until)


Compute = Callable[[list[int]], Iterable[tuple[int, V | Exception]]]
"""Gets the places of the keys to compute and yields each place with its value, or with the error that this one value
met. A yielded value is kept at once, so what was computed before a deadline is not lost."""


class Cache(Generic[V]):
    """Values bounded by bytes, the least recently used leaving first; each is computed once however many ask.

    Safe to use from many threads.
    """

    def __init__(self, max_bytes: int, weigh: Callable[[V], int], tier: Tier[V] | None = None) -> None:
        """
        Args:
            weigh: bytes of a value.
            tier: looked at, once for all keys of a request, before anything is computed.
        """
        self._lock = threading.Lock()
        self._kept: _CountingLRU[V] = _CountingLRU(max_bytes, lambda value: ENTRY_BYTES + weigh(value))
        self._flying: dict[bytes, _Flight[V]] = {}
        """The most urgent one of each key."""
        self._tier = tier
        self._hits = self._joined = self._misses = 0

    def fetch(self, keys: Sequence[bytes], compute: Compute[V], terms: RequestOptions) -> Fetched[V]:
        """The value of each key: from memory, from another request that is computing it now, or computed.

        Another request is not waited for where it has more time, is of a lower class, or takes what its time allows:
        it may be far behind, or never get there.

        Args:
            keys: may repeat.
            terms: how long to wait for another request's computation; whether what is kept may be used at all.

        Raises:
            Exception: the first error that `compute` yielded, after all other values were computed and kept.
            DeadlineError, or whatever else `compute` raised.
        """
        progress: _Progress[V] = _Progress()
        self._fill(progress, keys, compute, terms, partial=False)
        return Fetched([progress.found[key] for key in keys], progress.hits, progress.misses)

    def fetch_some(self, keys: Sequence[bytes], compute: Compute[V], terms: RequestOptions) -> Fetched[V | None]:
        """Fetches like `fetch`, but a passed deadline is no error: missing values are None and in neither count."""
        progress: _Progress[V] = _Progress()
        try:
            self._fill(progress, keys, compute, terms, partial=True)
        except DeadlineError:
            log.debug("%d of %d values were there in time", len(progress.found), len(keys))
        return Fetched([progress.found.get(key) for key in keys], progress.hits, progress.misses)

    def facts(self) -> CacheStats:
        with self._lock:
            kept = self._kept
            return CacheStats(self._hits, self._joined, self._misses, kept.evictions, len(kept), int(kept.currsize))

    def _fill(
        self,
        progress: "_Progress[V]",
        keys: Sequence[bytes],
        compute: Compute[V],
        terms: RequestOptions,
        *,
        partial: bool,
    ) -> None:
        """Brings the value of each key to `progress`, in rounds, as others may give up on what they compute."""
        if not terms.remember:
            first = {key: place for place, key in reversed(list(enumerate(keys)))}
            self._compute(progress, keys, sorted(first.values()), compute, {})
            progress.hits += len(keys) - len(first)
            return
        places = list(range(len(keys)))
        while places:
            mine, own, others = self._claim(progress, keys, places, terms, partial=partial)
            self._compute(progress, keys, mine, compute, own)
            places = []
            for place, flight in others:
                try:
                    progress.found[keys[place]] = flight.future.result(timeout=terms.deadline.patience)
                    progress.hits += 1
                except (_AbandonedError, InferenceError):
                    places.append(place)  # Theirs gave up or failed; it is ours to try now, and to tell of.
                except FutureTimeoutError:
                    terms.deadline.check()
                    raise

    def _claim(
        self,
        progress: "_Progress[V]",
        keys: Sequence[bytes],
        places: list[int],
        terms: RequestOptions,
        *,
        partial: bool,
    ) -> tuple[list[int], dict[bytes, _Flight[V]], list[tuple[int, _Flight[V]]]]:
        """Splits these indices into those to compute, with their flights, and those to wait for.

        Known values go to `progress`.
        """
        mine: list[int] = []
        own: dict[bytes, _Flight[V]] = {}
        others: list[tuple[int, _Flight[V]]] = []
        known = 0
        with self._lock:
            for place in places:
                key = keys[place]
                if key in progress.found or key in own:  # A text that this request holds twice.
                    known += 1
                    continue
                value = self._kept.get(key)
                flight = self._flying.get(key)
                if value is not None:
                    progress.found[key] = value
                    known += 1
                elif flight is not None and flight.serves(terms, partial=partial):
                    others.append((place, flight))
                else:
                    self._flying[key] = own[key] = _Flight(terms, partial)
                    mine.append(place)
            progress.hits += known
            self._hits += known
            self._joined += len(others)
            self._misses += len(mine)
        return mine, own, others

    def _compute(
        self,
        progress: "_Progress[V]",
        keys: Sequence[bytes],
        mine: list[int],
        compute: Compute[V],
        own: Mapping[bytes, _Flight[V]],
    ) -> None:
        """Looks for claimed values in the tier, computes the rest, and keeps each at once.

        Args:
            own: the flight of each key; none where nothing may be remembered.
        """
        if not mine:
            return
        open_keys = {keys[place] for place in mine}
        fresh: dict[bytes, V] = {}
        first: Exception | None = None
        try:
            if own and self._tier is not None:
                mine = self._near(progress, keys, mine, open_keys, own)
            for place, outcome in compute(mine) if mine else ():
                key = keys[place]
                open_keys.discard(key)
                if isinstance(outcome, Exception):
                    first = first or outcome
                    if own:
                        self._fail(key, outcome, own[key])
                    continue
                progress.found[key] = outcome
                progress.misses += 1
                if own:
                    fresh[key] = outcome
                    self._keep(key, outcome, own[key])
            if open_keys and first is None:
                raise RuntimeError(f"{len(open_keys)} of {len(mine)} values were not computed")
        finally:
            if own:
                for key in open_keys:
                    self._fail(key, _AbandonedError(), own[key])
            if fresh and self._tier is not None:
                self._tier.write(fresh)
        if first is not None:
            raise first

    def _near(
        self,
        progress: "_Progress[V]",
        keys: Sequence[bytes],
        mine: list[int],
        open_keys: set[bytes],
        own: Mapping[bytes, _Flight[V]],
    ) -> list[int]:
        """The places that the tier does not have either; what it has is kept."""
        assert self._tier is not None
        left = []
        for place, value in zip(mine, self._tier.read([keys[place] for place in mine]), strict=True):
            if value is None:
                left.append(place)
                continue
            progress.found[keys[place]] = value
            progress.hits += 1
            open_keys.discard(keys[place])
            self._keep(keys[place], value, own[keys[place]])
        return left

    def _keep(self, key: bytes, value: V, flight: _Flight[V]) -> None:
        with self._lock:
            self._kept.hold(key, value)
            self._land(key, flight)
        flight.future.set_result(value)

    def _fail(self, key: bytes, error: Exception, flight: _Flight[V]) -> None:
        with self._lock:
            self._land(key, flight)
        flight.future.set_exception(error)

    def _land(self, key: bytes, flight: _Flight[V]) -> None:
        """Ends a flight, under the lock; a more urgent one of the same key goes on."""
        if self._flying.get(key) is flight:
            del self._flying[key]


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
