"""The cache of scores, vectors and token ids, in memory, under keys that name the model and the texts.

A key is a hash of the model's identity (digest of tokenizer, templates and weights; precision; the processor that
rounds), and each text with its length before it. So another release, or a changed document, is another key: nothing is
ever flushed, an old score can never answer for a new model, and a rollback finds its entries as it left them.

The texts are hashed as the model reads them: after `pipeline.text.clean`, not case folded, because a model may
tell cases apart and a score must not depend on who asked first.

A fetch goes in rounds, and each value is computed once, however many requests want it at the same time (single flight):

    indices ─► _claim ─┬─► known: kept in memory ──────────────────────────────────────► values
                       ├─► ours: open a flight ─► _read_tier ─► _compute ─► _keep ─────► values, and to those who wait
                       └─► flown by another request ─► _wait ─┬─► its value ───────────► values
                                                              └─► it failed or gave up ─► next round
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serving.errors import DeadlineError
from serving.runtime.admission import RequestOptions
from serving.runtime.byte_lru import ByteLRU
from serving.runtime.deadline import Deadline
from serving.scoring.redis_cache import Tier

V = TypeVar("V")

log = logging.getLogger(__name__)

ENTRY_BYTES = 168
"""Bytes of one entry beside its value: key, node, dictionary slot; measured with tracemalloc on CPython 3.11."""


class Key:
    """Makes keys that share a beginning, such as the model and the query of many documents."""

    def __init__(self, *parts: str) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        _feed(self._hash, parts)

    def of(self, *parts: str | bytes) -> bytes:
        """The 16 bytes for the beginning and these parts."""
        digest = self._hash.copy()
        _feed(digest, parts)
        return digest.digest()


def _feed(digest: "hashlib.blake2b", parts: Iterable[str | bytes]) -> None:
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)


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


@dataclass(slots=True, eq=False)
class _Flight(Generic[V]):
    """The values that one request is computing now, and that others may wait for. The cache's lock guards it."""

    options: RequestOptions
    partial: bool
    """Whether values may stay uncomputed, as the time may not suffice for the whole request."""
    values: dict[bytes, V | None] = field(default_factory=dict)
    """Key → the computed value; None where it failed, or the request gave up on it."""
    landed: threading.Condition | None = None
    """Wakes those who wait for a value; None while nobody does."""

    def serves(self, options: RequestOptions, *, partial: bool) -> bool:
        """Whether a request with these options may wait for this computation: one of its own would end no earlier."""
        own, other = self.options, options
        return self.partial <= partial and (own.priority, own.deadline.until) <= (other.priority, other.deadline.until)


Compute = Callable[[list[int]], Iterable[tuple[int, V | Exception]]]
"""Takes the indices of the keys to compute and yields each index with its value, or with the error of this one value.
A yielded value is kept at once, so what was computed before a deadline is not lost."""


@dataclass(slots=True)
class _Fetch(Generic[V]):
    """One call of `fetch`: what is wanted, and the values so far."""

    keys: Sequence[bytes]
    compute: Compute[V]
    options: RequestOptions
    partial: bool
    """Whether missing values are no error."""
    values: dict[bytes, V] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0


@dataclass(frozen=True, slots=True)
class _Claim(Generic[V]):
    """The work that one round of a fetch has taken on, by the indices of its keys."""

    indices: list[int]
    """Values that this fetch computes itself."""
    flight: _Flight[V] | None
    """Their flight; None where nothing may be remembered."""
    waits: list[tuple[int, _Flight[V]]] = field(default_factory=list)
    """Values that other requests compute."""


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
        self._kept: ByteLRU[V] = ByteLRU(max_bytes, lambda value: ENTRY_BYTES + weigh(value))
        self._flying: dict[bytes, _Flight[V]] = {}
        """Key → the most urgent of the running computations of its value."""
        self._tier = tier
        self._hits = self._joined = self._misses = 0

    def fetch(self, keys: Sequence[bytes], compute: Compute[V], options: RequestOptions) -> Fetched[V]:
        """The value of each key: from memory, from another request that is computing it now, or computed.

        Another request is not waited for where it has more time, is of a lower class, or takes what its time allows:
        it may be far behind, or never get there.

        Args:
            keys: may repeat.
            options: how long to wait for another request's computation; whether kept values may be used at all.

        Raises:
            Exception: the first error that `compute` yielded, after all other values were computed and kept.
            DeadlineError, or whatever else `compute` raised.
        """
        fetch = _Fetch(keys, compute, options, partial=False)
        self._fill(fetch)
        return Fetched([fetch.values[key] for key in keys], fetch.hits, fetch.misses)

    def fetch_some(self, keys: Sequence[bytes], compute: Compute[V], options: RequestOptions) -> Fetched[V | None]:
        """Fetches like `fetch`, but a passed deadline is no error: missing values are None and in neither count."""
        fetch = _Fetch(keys, compute, options, partial=True)
        try:
            self._fill(fetch)
        except DeadlineError:
            log.debug("%d of %d values were there in time", len(fetch.values), len(keys))
        return Fetched([fetch.values.get(key) for key in keys], fetch.hits, fetch.misses)

    def stats(self) -> CacheStats:
        with self._lock:
            kept = self._kept
            return CacheStats(self._hits, self._joined, self._misses, kept.evictions, len(kept), kept.bytes)

    def _fill(self, fetch: _Fetch[V]) -> None:
        """Brings all values to `fetch`, in rounds: a value that another request gave up on is claimed anew."""
        if not fetch.options.remember:
            first = {key: index for index, key in reversed(list(enumerate(fetch.keys)))}
            self._compute(fetch, _Claim(sorted(first.values()), None))
            fetch.hits += len(fetch.keys) - len(first)
            return
        indices = list(range(len(fetch.keys)))
        while indices:
            claim = self._claim(fetch, indices)
            self._compute(fetch, claim)
            indices = self._wait(fetch, claim)

    def _claim(self, fetch: _Fetch[V], indices: list[int]) -> _Claim[V]:
        """Splits indices into those to compute and those to wait for; known values go to `fetch`."""
        own: _Flight[V] = _Flight(fetch.options, fetch.partial)
        claim = _Claim([], own)
        known = 0
        with self._lock:
            for index in indices:
                key = fetch.keys[index]
                flight = self._flying.get(key)
                if key in fetch.values or flight is own:  # A text that this request holds twice.
                    known += 1
                elif (value := self._kept.get(key)) is not None:
                    fetch.values[key] = value
                    known += 1
                elif flight is not None and flight.serves(fetch.options, partial=fetch.partial):
                    flight.landed = flight.landed or threading.Condition(self._lock)
                    claim.waits.append((index, flight))
                else:
                    self._flying[key] = own
                    claim.indices.append(index)
            fetch.hits += known
            self._hits += known
            self._joined += len(claim.waits)
            self._misses += len(claim.indices)
        return claim

    def _wait(self, fetch: _Fetch[V], claim: _Claim[V]) -> list[int]:
        """Waits for the values that others compute; returns the indices of those that they failed to bring."""
        failed = []
        for index, flight in claim.waits:
            key = fetch.keys[index]
            value = self._landed_value(flight, key, fetch.options.deadline)
            if value is None:
                failed.append(index)  # Computed by this request next, which then reports an error itself.
                continue
            fetch.values[key] = value
            fetch.hits += 1
        return failed

    def _landed_value(self, flight: _Flight[V], key: bytes, deadline: Deadline) -> V | None:
        """Waits for a value that another request computes; None where it did not come to be."""
        with self._lock:
            assert flight.landed is not None  # Since this request waits.
            while key not in flight.values:
                if not flight.landed.wait(deadline.patience):
                    deadline.check()
            return flight.values[key]

    def _compute(self, fetch: _Fetch[V], claim: _Claim[V]) -> None:
        """Reads claimed values from the tier, computes the others, and keeps each at once."""
        if not claim.indices:
            return
        pending = {fetch.keys[index] for index in claim.indices}
        computed: dict[bytes, V] = {}
        error: Exception | None = None
        try:
            indices = self._read_tier(fetch, claim, pending)
            for index, outcome in fetch.compute(indices) if indices else ():
                key = fetch.keys[index]
                pending.discard(key)
                if isinstance(outcome, Exception):
                    error = error or outcome
                    if claim.flight is not None:
                        self._give_up([key], claim.flight)
                    continue
                fetch.values[key] = outcome
                fetch.misses += 1
                if claim.flight is not None:
                    computed[key] = outcome
                    self._keep(key, outcome, claim.flight)
            if pending and error is None:
                raise RuntimeError(f"{len(pending)} of {len(indices)} values were not computed")
        finally:
            if claim.flight is not None:
                self._give_up(pending, claim.flight)
            if computed and self._tier is not None:
                self._tier.write(computed)
        if error is not None:
            raise error

    def _read_tier(self, fetch: _Fetch[V], claim: _Claim[V], pending: set[bytes]) -> list[int]:
        """Keeps the claimed values that the shared cache (tier) has, and returns the indices of the others."""
        if self._tier is None or claim.flight is None:
            return claim.indices
        missing = []
        keys = [fetch.keys[index] for index in claim.indices]
        for index, key, value in zip(claim.indices, keys, self._tier.read(keys), strict=True):
            if value is None:
                missing.append(index)
                continue
            fetch.values[key] = value
            fetch.hits += 1
            pending.discard(key)
            self._keep(key, value, claim.flight)
        return missing

    def _keep(self, key: bytes, value: V, flight: _Flight[V]) -> None:
        with self._lock:
            self._kept.put(key, value)
            self._land(key, value, flight)

    def _give_up(self, keys: Iterable[bytes], flight: _Flight[V]) -> None:
        with self._lock:
            for key in keys:
                self._land(key, None, flight)

    def _land(self, key: bytes, value: V | None, flight: _Flight[V]) -> None:
        """Ends the flight of a value, under the lock; a more urgent one of the same key goes on."""
        flight.values[key] = value
        if self._flying.get(key) is flight:
            del self._flying[key]
        if flight.landed is not None:
            flight.landed.notify_all()
