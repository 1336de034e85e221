"""Values that several processes share in a Redis: a second look before something is computed.

One MGET a look-up, which gets five milliseconds; what was computed is written afterwards, in the background. Whatever
goes wrong, a Redis that is gone, slow, full or holds something else, is a miss and never an error. After a few failures
in a row it is left alone for a while, so that a dead one costs nothing.

A value is one byte of format, the payload, and a checksum over key and payload: what another writer put there, or half
of a value, is not read. Keys name the model, the processor and the texts (see
`serving.scoring.cache`), so nothing is stale.
"""

import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

V = TypeVar("V")

BUDGET_S = 0.005
"""Most seconds of one look-up, whatever happens."""
SOCKET_S = 0.05
"""Most seconds of one exchange with the server: longer than the budget, so that a connection which is slow to be
made is there for the next look-up."""
THREADS = 4
"""Threads that read from Redis at once."""
WRITES = 64
"""Requests whose values wait to be written; those of further ones are not shared."""
FAILURES = 3
"""Failures in a row after which Redis is left alone for a while."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
FORMAT = b"\x01"
"""The first byte of each stored value, its version."""
PREFIX = b"relevance:1:"
"""The beginning of each key in Redis."""

log = logging.getLogger(__name__)


class Breaker:
    """Says no for a while after several failures in a row, longer each time that the next trial fails too.

    Safe to use from many threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = FIRST_PAUSE_S
        self._until = 0.0
        self._trying = False

    @property
    def open(self) -> bool:
        """Whether requests are refused, but for one trial after each pause."""
        return self._failures >= FAILURES

    def allows(self) -> bool:
        """Whether a request may use Redis now; true once after each pause while the breaker is open."""
        with self._lock:
            if not self.open:
                return True
            now = self._clock()
            if now < self._until:
                return False
            self._until = now + self._pause  # This one tries; the others go on waiting.
            self._trying = True
            return True

    def succeeded(self) -> None:
        """Notes a success, after which all requests are allowed."""
        with self._lock:
            self._failures, self._pause, self._trying = 0, FIRST_PAUSE_S, False

    def failed(self) -> bool:
        """Notes a failure; returns whether it opened the breaker."""
        with self._lock:
            if self.open and not self._trying:
                return False  # It began before, beside those that opened it, and says nothing new.
            self._failures += 1
            if self._failures < FAILURES:
                return False
            if self._trying:
                self._trying = False
                self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
            self._until = self._clock() + self._pause
            return self._failures == FAILURES


@dataclass(slots=True)
class SharedCacheStats:
    """Counts since the start."""

    hits: int = 0
    misses: int = 0
    """Asked, and not there."""
    unreadable: int = 0
    """There, but not what was written."""
    failures: int = 0
    """Look-ups and writes that failed or took too long."""
    skipped: int = 0
    """Look-ups that were not made, because of earlier failures."""
    unwritten: int = 0
    """Values that were not written, because of failures or because too many waited."""


class SharedCache:
    """Bytes under keys in a Redis; safe to use from many threads."""

    def __init__(self, url: str, *, ttl_s: float = 7 * 86_400.0) -> None:
        """
        Args:
            url: an address such as redis://localhost:6379/0, rediss:// with TLS, or unix:///run/redis.sock.
            ttl_s: how long a value stays there unless the server lets it go earlier.

        Raises:
            ConfigError: not a Redis URL, or the redis package is not installed.
        """
        self._client = _client(url)
        self._where = urlsplit(url).hostname or urlsplit(url).path
        self._ttl_ms = max(int(1000 * ttl_s), 1)
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="shared-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shared-write")
        self._lock = threading.Lock()
        self._writes = 0
        self._breaker = Breaker()
        self._stats = SharedCacheStats()

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none or it cannot be had in time."""
        nothing: list[bytes | None] = [None] * len(keys)
        if not self._breaker.allows():
            self._count(skipped=1)
            return nothing
        future: Future[list[Any]] | None = None
        try:
            future = self._readers.submit(self._client.mget, [PREFIX + key for key in keys])
            held = future.result(timeout=BUDGET_S)
        except Exception as error:
            if future is not None:
                future.cancel()
            self._fail(error)
            return nothing
        self._breaker.succeeded()
        values = [_unsealed(key, value) for key, value in zip(keys, held, strict=True)]
        absent = sum(value is None for value in held)
        good = sum(value is not None for value in values)
        self._count(hits=good, misses=absent, unreadable=len(keys) - absent - good)
        return values

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Keeps values for others, in the background; gives up on them where that fails."""
        with self._lock:
            ready = self._writes < WRITES and not self._breaker.open
            if ready:
                self._writes += 1
            else:
                self._stats.unwritten += len(values)
        if not ready:
            return
        try:
            self._writer.submit(self._write, values)
        except RuntimeError:  # The process stops, and answers what it has begun.
            with self._lock:
                self._writes -= 1
                self._stats.unwritten += len(values)

    def stats(self) -> SharedCacheStats:
        with self._lock:
            return SharedCacheStats(
                self._stats.hits,
                self._stats.misses,
                self._stats.unreadable,
                self._stats.failures,
                self._stats.skipped,
                self._stats.unwritten,
            )

    @property
    def resting(self) -> bool:
        """Whether Redis is left alone because of failures."""
        return self._breaker.open

    def flush(self) -> None:
        """Waits until all values are written that were given before."""
        self._writer.submit(int).result()

    def stop(self) -> None:
        """Closes the connections, once present reads and writes have ended; later look-ups are misses."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _write(self, values: Mapping[bytes, bytes]) -> None:
        try:
            pipe = self._client.pipeline(transaction=False)
            for key, value in values.items():
                pipe.set(PREFIX + key, _sealed(key, value), px=self._ttl_ms)
            pipe.execute()
        except Exception as error:
            self._fail(error)
            self._count(unwritten=len(values))
        finally:
            with self._lock:
                self._writes -= 1

    def _fail(self, error: Exception) -> None:
        self._count(failures=1)
        if self._breaker.failed():
            problem = f"no answer in {1000 * BUDGET_S:g} ms" if isinstance(error, FutureTimeoutError) else repr(error)
            log.warning(
                "shared cache at %s: left alone for a while after %d failures: %s", self._where, FAILURES, problem
            )

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                setattr(self._stats, name, getattr(self._stats, name) + count)


@dataclass(frozen=True, slots=True)
class Tier(Generic[V]):
    """The shared cache as one kind of value sees it."""

    shared: SharedCache
    pack: Callable[[V], bytes]
    unpack: Callable[[bytes], V | None]
    """None for bytes that are no such value."""

    def read(self, keys: Sequence[bytes]) -> list[V | None]:
        """The value of each key that is there."""
        return [None if held is None else self.unpack(held) for held in self.shared.read(keys)]

    def write(self, values: Mapping[bytes, V]) -> None:
        """Keeps values for others, in the background."""
        self.shared.write({key: self.pack(value) for key, value in values.items()})


def _sealed(key: bytes, payload: bytes) -> bytes:
    return FORMAT + payload + zlib.crc32(key + payload).to_bytes(4, "little")


def _unsealed(key: bytes, value: Any) -> bytes | None:
    """The payload, if the value is whole and stands under the key that it was written for."""
    if not isinstance(value, bytes) or len(value) < 6 or value[:1] != FORMAT:
        return None
    payload = value[1:-4]
    return payload if _sealed(key, payload) == value else None


def _client(url: str) -> Any:
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigError(f"redis_url is given, but {error.name} is not installed; install .[redis]") from error
    try:
        return Redis.from_url(
            url, socket_timeout=SOCKET_S, socket_connect_timeout=SOCKET_S, retry=Retry(NoBackoff(), 0), protocol=2
        )
    except ValueError as error:
        raise ConfigError(f"redis_url is not usable ({error}); give one such as redis://localhost:6379/0") from error
