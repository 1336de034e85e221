"""The Redis tier: against a real server where there is one, and against sockets that misbehave."""

import contextlib
import logging
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring import redis_cache
from serving.scoring.embedder import Embedder
from serving.scoring.process_caches import Caches
from serving.scoring.redis_cache import (
    FAILURES,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    PREFIX,
    Breaker,
    SharedCache,
)
from serving.scoring.reranker import Reranker
from tests.serving.fake_models import FakeEngine, length, two

NEVER = RequestOptions(Deadline.never())
KEY = bytes(range(16))


class Server:
    """A redis-server of the test's own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url, socket_timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("redis"))
    yield running
    running.kill()


@pytest.fixture
def fresh(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, empty; the budget is generous, so that a busy machine cannot fail a test of what is stored."""
    monkeypatch.setattr(redis_cache, "BUDGET_S", 5.0)
    monkeypatch.setattr(redis_cache, "SOCKET_S", 5.0)
    with server.client() as client:
        client.flushall()
        client.config_resetstat()
    return server


@contextlib.contextmanager
def shared(url: str, **knobs: Any) -> Iterator[SharedCache]:
    tier = SharedCache(url, **knobs)
    try:
        yield tier
    finally:
        tier.stop()


def pair_of(shared: SharedCache) -> tuple[Reranker, Reranker]:
    """The same model in two processes, as far as their memory is concerned."""
    first, second = (Reranker(FakeEngine(length), Caches.of(1 << 20, shared).scores) for _ in range(2))
    return first, second


@pytest.mark.redis
def test_what_one_process_computed_another_reads_bit_for_bit(fresh: Server) -> None:
    with shared(fresh.url) as tier:
        first, second = pair_of(tier)
        first.engine.says = lambda text: 0.1 + len(text) / 3  # type: ignore[attr-defined]
        documents = ["a", "bb", "列表"]
        computed = first.scores("q", documents, NEVER)
        tier.flush()
        read = second.scores("q", documents, NEVER)
        assert read.values == computed.values
        assert (read.hits, read.misses) == (3, 0)
        assert second.engine.runs == []  # type: ignore[attr-defined]
        assert second.scores("q", ["a"], NEVER).hits == 1  # From its own memory now.
        assert (tier.stats().hits, tier.stats().misses) == (3, 3)


@pytest.mark.redis
def test_vectors_travel_too_and_stay_read_only(fresh: Server) -> None:
    with shared(fresh.url) as tier:
        first, second = (Embedder(FakeEngine(two), Caches.of(1 << 20, tier).vectors) for _ in range(2))
        first.vectors(["abc", "d"], "document", NEVER)
        tier.flush()
        result = second.vectors(["abc", "d"], "document", NEVER)
        assert [vector.tolist() for vector in result.values] == [[3, 8], [1, 8]]
        assert result.values[0].dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            result.values[0][0] = 1
        assert second.vectors(["abc"], "query", NEVER).misses == 1


@pytest.mark.redis
def test_a_request_is_one_round_trip_and_its_values_one_pipeline(fresh: Server) -> None:
    with shared(fresh.url) as tier, fresh.client() as client:
        first, second = pair_of(tier)
        documents = [f"document {number}" for number in range(300)]
        first.scores("q", documents, NEVER)
        tier.flush()
        second.scores("q", documents, NEVER)
        calls = client.info("commandstats")
        assert calls["cmdstat_mget"]["calls"] == 2
        assert calls["cmdstat_set"]["calls"] == 300
        assert "cmdstat_multi" not in calls
        assert 0 < client.pttl(client.randomkey()) <= 7 * 86_400_000


@pytest.mark.redis
def test_what_may_not_be_remembered_never_reaches_the_server(fresh: Server) -> None:
    with shared(fresh.url) as tier, fresh.client() as client:
        first, _ = pair_of(tier)
        first.scores("q", ["a"], RequestOptions(Deadline.never(), remember=False))
        tier.flush()
        assert client.dbsize() == 0
        assert tier.stats().misses == 0


def sealed(tier: SharedCache, client: Any, key: bytes, value: bytes) -> bytes:
    tier.write({key: value})
    tier.flush()
    held: bytes = client.get(PREFIX + key)
    return held


@pytest.mark.redis
def test_garbage_is_a_miss(fresh: Server) -> None:
    with shared(fresh.url) as tier, fresh.client() as client:
        good = sealed(tier, client, KEY, struct.pack("<d", 1.5))
        assert tier.read([KEY]) == [struct.pack("<d", 1.5)]
        flipped = bytes([*good[:3], good[3] ^ 1, *good[4:]])
        unreadable = [b"", b"\x01", b"hello", good[:-1], good + b"x", flipped, b"\x02" + good[1:], b"\x80\x04K\x01."]
        for other in unreadable:
            client.set(PREFIX + KEY, other)
            assert tier.read([KEY]) == [None]
        another = KEY[::-1]
        client.set(PREFIX + another, good)  # Whole, but another key's.
        assert tier.read([another]) == [None]
        client.delete(PREFIX + KEY)
        client.lpush(PREFIX + KEY, "a list")  # MGET answers nothing for it.
        assert tier.read([KEY]) == [None]
        assert tier.stats().failures == 0
        assert tier.stats().unreadable == len(unreadable) + 1


@pytest.mark.redis
@pytest.mark.parametrize("payload", [b"", b"\0" * 7, b"\0" * 9, struct.pack("<d", float("nan"))])
def test_a_whole_value_that_is_no_score_is_computed_again(fresh: Server, payload: bytes) -> None:
    with shared(fresh.url) as tier, fresh.client() as client:
        first, second = pair_of(tier)
        first.scores("q", ["abc"], NEVER)
        tier.flush()
        (stored,) = client.keys(PREFIX + b"*")
        sealed(tier, client, stored.removeprefix(PREFIX), payload)
        result = second.scores("q", ["abc"], NEVER)
        assert (result.values, result.misses) == ([3.0], 1)


@pytest.mark.redis
def test_a_server_that_is_killed_and_comes_back(fresh: Server, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(redis_cache, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(redis_cache, "LONGEST_PAUSE_S", 0.05)
    with shared(fresh.url) as tier:
        first, second = pair_of(tier)
        first.scores("q", ["a"], NEVER)
        tier.flush()
        fresh.kill()
        try:
            for number in range(20):
                assert second.scores("q", [f"new {number}"], NEVER).misses == 1
            assert tier.resting
            assert tier.stats().skipped > 0
        finally:
            fresh.start()
        until = time.monotonic() + 60
        while tier.resting and time.monotonic() < until:
            tier.read([KEY])
            time.sleep(0.01)
        assert not tier.resting
        first.scores("q", ["after"], NEVER)
        tier.flush()
        assert second.scores("q", ["after"], NEVER).hits == 1
    assert [record.levelname for record in caplog.records if "left alone" in record.message] == ["WARNING"]


@pytest.mark.redis
def test_a_server_that_sleeps_is_not_waited_for(fresh: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with shared(fresh.url) as tier:
        reranker, _ = pair_of(tier)
        reranker.scores("q", ["warm"], NEVER)
        tier.flush()
        assert not tier.resting
        assert fresh.process is not None
        monkeypatch.setattr(redis_cache, "BUDGET_S", 0.005)
        fresh.process.send_signal(signal.SIGSTOP)
        try:
            failures = tier.stats().failures
            assert reranker.scores("q", ["new"], NEVER).values == [3.0]
            assert tier.stats().failures > failures
        finally:
            fresh.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def listener(answers: bytes) -> Iterator[str]:
    """A server that accepts, says `answers` to whatever it hears, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        stop, open_sockets = threading.Event(), []

        def accept() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    accepted, _ = listening.accept()
                    open_sockets.append(accepted)
                    if answers:
                        accepted.sendall(answers)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        finally:
            stop.set()
            thread.join()
            for accepted in open_sockets:
                accepted.close()


@pytest.mark.parametrize("answers", [b"", b"HTTP/1.1 400 Bad\r\n\r\n" * 9, b"*1000000\r\n", b"-LOADING\r\n" * 9])
def test_what_is_no_redis_costs_a_few_budgets_and_then_nothing(answers: bytes) -> None:
    with listener(answers) as url, shared(url) as tier:
        reranker, _ = pair_of(tier)
        for number in range(30):
            assert reranker.scores("q", [f"{number}"], NEVER).misses == 1
        stats = tier.stats()
        assert tier.resting
        assert stats.hits == 0
        assert stats.skipped >= 30 - FAILURES - 10
        assert stats.unwritten > 0


def test_nobody_listening_is_a_miss_and_never_an_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{closed.getsockname()[1]}"
    with shared(url) as tier:
        reranker, _ = pair_of(tier)
        assert reranker.scores("q", ["a", "bb"], NEVER).values == [1.0, 2.0]
        assert tier.stats().failures >= 1


def test_a_request_that_outlives_the_tier_is_answered() -> None:
    """Requests that have begun when the process stops still end; what they computed is not shared."""
    with shared("redis://127.0.0.1:1") as tier:
        reranker, _ = pair_of(tier)
        tier.stop()
        assert reranker.scores("q", ["a", "bb"], NEVER).values == [1.0, 2.0]
        assert tier.stats().unwritten == 2


def test_a_failure_of_the_tier_leaves_no_claim_behind() -> None:
    """Whoever asks next computes; nobody waits for a value that nobody makes."""
    with listener(b"") as url, shared(url) as tier:
        reranker, _ = pair_of(tier)
        answers: list[list[float]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(reranker.scores("q", ["a"], NEVER).values)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == [[1.0]] * 8
        assert len(reranker.engine.runs) == 1  # type: ignore[attr-defined]


def test_the_breaker_opens_after_failures_in_a_row_and_tries_again_less_and_less_often() -> None:
    now = [100.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES - 1):
        assert breaker.failed() is False
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed()
    assert breaker.allows()
    assert breaker.failed() is True
    pauses = []
    for _ in range(8):
        began = now[0]
        while not breaker.allows():
            now[0] += 0.125
        pauses.append(now[0] - began)
        assert not breaker.allows()  # One trial only.
        assert breaker.failed() is False
    assert pauses[:4] == [FIRST_PAUSE_S * 2**turn for turn in range(4)]
    assert pauses[-1] == LONGEST_PAUSE_S
    breaker.succeeded()
    assert breaker.allows()
    assert not breaker.open


def test_failures_beside_those_that_opened_the_breaker_do_not_lengthen_its_pause() -> None:
    now = [100.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES + 20):  # All began before it opened.
        breaker.failed()
    now[0] += FIRST_PAUSE_S
    assert breaker.allows()
    for _ in range(20):  # One is the trial; the others are late.
        breaker.failed()
    now[0] += 2 * FIRST_PAUSE_S
    assert breaker.allows()


def test_a_password_is_neither_logged_nor_shown(caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG), shared("redis://user:secret@127.0.0.1:1/0") as tier:
        for _ in range(FAILURES):
            tier.read([KEY])
    assert "left alone" in caplog.text
    assert "secret" not in caplog.text


def test_what_is_no_redis_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"redis_url is not usable.*redis://localhost"):
        SharedCache("http://localhost")
