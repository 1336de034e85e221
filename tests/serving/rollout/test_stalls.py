"""Canaries that stall, raise or are slow, on a service with real runners; and what must not be held against one."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.api import app as apps
from serving.process import worker
from serving.rollout import active, pairs, shadow
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.trials import Bounds, Canary, Trial
from serving.runtime import engine, golden
from serving.runtime.items import Item
from serving.runtime.scheduler import PresentRun
from serving.scoring.searcher import Searcher
from tests.serving.patience import patient

Start = Callable[..., tuple[TestClient, Lifecycle]]


@pytest.fixture
def begin(fresh: Any) -> Iterator[Start]:
    """Starts the service with seed 1 live and seed 2 as a canary that gets all requests."""
    clients = []

    def start(threads: int = 2, **bounds: Any) -> tuple[TestClient, Lifecycle]:
        fresh.releases.promote(fresh.publish(1), reason="test")
        lifecycle = Lifecycle(patient(workspace=fresh.path, threads=threads, poll_s=60))
        lifecycle.start()
        canary = Canary(release=fresh.publish(2), share=1.0, bounds=Bounds(**{"min_overlap": 0, **bounds}))
        lifecycle.rollout.active.file.begin("canary", canary)
        lifecycle.poll()
        client = TestClient(apps.create(lifecycle))
        clients.append(client.__enter__())
        return client, lifecycle

    yield start
    for client in clients:
        client.__exit__(None, None, None)


class Stall:
    """A run that does not come back until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *searchers: Searcher) -> None:
        self.released = threading.Event()
        for searcher in searchers:
            monkeypatch.setattr(searcher.ranker, "run", self._run)

    def _run(self, items: Sequence[Item]) -> Any:
        self.released.wait(60)
        return [0.0] * len(items)


def canary_of(lifecycle: Lifecycle) -> Searcher:
    return lifecycle.rollout.choose(lifecycle.current, "any", "always").searcher


def rerank(client: TestClient, text: str, **headers: str) -> Any:
    return client.post("/rerank", json={"query": "a list", "texts": [text, f"{text} too"]}, headers=headers)


def wait_for_runs(lifecycle: Lifecycle, count: int) -> None:
    while len(lifecycle.scheduler.present_runs()) != count:
        time.sleep(0.001)


def late_until_runs(client: TestClient, lifecycle: Lifecycle, count: int, **headers: str) -> None:
    """Sends requests that end at their deadlines, until a number of their runs are stuck.

    A busy machine may not begin a run within a deadline; then the request leaves nothing behind.
    """
    number = 0
    while len(lifecycle.scheduler.present_runs()) < count:
        body = {"query": "a list", "texts": [f"late {number}"]}
        answer = client.post("/rerank", json=body, headers={"x-request-timeout-ms": "50", **headers})
        assert answer.status_code in (429, 504)
        number += 1


def look_twice(lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for overdue runs twice, when every present run is overdue."""
    with monkeypatch.context() as patched:
        patched.setattr(active, "STALL_SHARE", 0.0)
        lifecycle.rollout.active.end_stalled()
        lifecycle.rollout.active.end_stalled()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_canary_that_stalls_for_ever_is_withdrawn(
    begin: Start, fresh: Any, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    client, lifecycle = begin(threads, compare=0)
    stall = Stall(monkeypatch, canary_of(lifecycle))
    late_until_runs(client, lifecycle, threads)
    look_twice(lifecycle, monkeypatch)
    withdrawn = lifecycle.rollout.active.file.read().withdrawn  # Known to the next process too.
    assert withdrawn is not None
    assert "a run of its model has not come back" in withdrawn.reason
    metrics: Any = SimpleNamespace(refresh=lambda: None)  # All runners are lost, so another process takes over.
    assert not worker.Pulse(lifecycle.settings, lifecycle, lambda release: True, metrics)()
    assert lifecycle.rollout.choose(lifecycle.current, "any", None).variant == "live"
    stall.released.set()
    assert rerank(client, "a text").headers["x-variant"] == "live"


def test_a_process_ends_for_a_run_that_is_overdue_twice_and_not_for_one_that_stood_still_with_it() -> None:
    model: Any = None
    run = PresentRun(model, time.monotonic() - 3600, frozenset())
    present = [run]
    lifecycle: Any = SimpleNamespace(
        scheduler=SimpleNamespace(present_runs=lambda: list(present)),
        rollout=SimpleNamespace(active=SimpleNamespace(runners_lost=False)),
        current=SimpleNamespace(release="a"),
    )
    metrics: Any = SimpleNamespace(refresh=lambda: None)
    pulse = worker.Pulse(patient(silent_s=30.0), lifecycle, lambda release: True, metrics)
    assert pulse()
    present[:] = [PresentRun(model, time.monotonic() - 3600, frozenset())]  # The first one has ended meanwhile.
    assert pulse()
    present.clear()
    assert pulse()
    present.append(run)
    assert [pulse(), pulse()] == [True, False]


def test_a_shadow_that_stalls_is_withdrawn_as_it_takes_a_runner(
    begin: Start, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, lifecycle = begin()
    lifecycle.rollout.active.file.end("canary", 1, "not wanted here")
    lifecycle.rollout.active.file.begin("shadow", Trial(release=fresh.publish(2), share=1.0))
    lifecycle.poll()
    assert lifecycle.rollout.active.shadow is not None
    stall = Stall(monkeypatch, lifecycle.rollout.active.shadow.searcher)
    assert rerank(client, "a text").status_code == 200
    wait_for_runs(lifecycle, 2)
    look_twice(lifecycle, monkeypatch)
    assert lifecycle.rollout.active.file.read().shadow is None
    stall.released.set()


@pytest.mark.parametrize("both", [False, True])
def test_a_stall_of_the_live_release_or_of_the_machine_withdraws_no_canary(
    begin: Start, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    client, lifecycle = begin(2, compare=1)
    live, canary = lifecycle.current, canary_of(lifecycle)
    stall = Stall(monkeypatch, *((live, canary) if both else (live,)))
    late = {"x-request-timeout-ms": "50"}
    monkeypatch.setattr(pairs, "COPY_S", 0.2)
    late_until_runs(client, lifecycle, 1, **{"x-canary": "never"})
    if both:
        late_until_runs(client, lifecycle, 2, **{"x-canary": "always"})
    for number in range(5):
        rerank(client, f"text {number}", **late)
        lifecycle.rollout.settle()
    tally = lifecycle.rollout.tally()
    assert tally is not None
    assert (tally.missed, tally.errors) == (0, 0)
    look_twice(lifecycle, monkeypatch)
    assert lifecycle.rollout.active.withdrawals["canary"] == 0
    assert not lifecycle.rollout.active.runners_lost
    stall.released.set()


def test_runs_that_are_gone_at_the_next_look_withdraw_nothing(begin: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was suspended wakes up with runs that seem to have taken hours."""
    client, lifecycle = begin(1, compare=0)
    for _ in range(2):
        stall = Stall(monkeypatch, canary_of(lifecycle))
        late_until_runs(client, lifecycle, 1)
        with monkeypatch.context() as patched:
            patched.setattr(active, "STALL_SHARE", 0.0)
            lifecycle.rollout.active.end_stalled()
        stall.released.set()
        wait_for_runs(lifecycle, 0)
    assert lifecycle.rollout.active.withdrawals["canary"] == 0


def test_a_canary_that_answers_no_copy_in_time_is_withdrawn(begin: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its runs comes back, too late for the copy and for the client."""
    client, lifecycle = begin(2, compare=1)
    monkeypatch.setattr(pairs, "COPY_S", 0.5)
    canary = canary_of(lifecycle)
    requests = 0
    while lifecycle.rollout.active.withdrawals["canary"] == 0:
        stall = Stall(monkeypatch, canary)
        client.post(
            "/rerank",
            json={"query": "a list", "texts": [f"text {requests}"]},
            headers={"x-request-timeout-ms": "1"},
        )
        lifecycle.rollout.settle()
        stall.released.set()
        wait_for_runs(lifecycle, 0)
        requests += 1
        assert requests < 50
    lifecycle.poll()
    withdrawn = lifecycle.rollout.active.trials.withdrawn
    assert withdrawn is not None
    assert "had no answer in time from the canary alone, and 0 from the live release alone" in withdrawn.reason


@pytest.mark.parametrize(("times", "withdrawn"), [(1.4, False), (1.6, True)])
def test_a_canary_that_is_slower_on_the_same_questions_is_withdrawn(
    begin: Start, monkeypatch: pytest.MonkeyPatch, times: float, withdrawn: bool
) -> None:
    client, lifecycle = begin(1, compare=1, min_compared=10, max_latency=1.5)
    clock = _Clock()
    monkeypatch.setattr(shadow, "time", clock)
    clock.drives(monkeypatch, lifecycle.current, 1.0)
    clock.drives(monkeypatch, canary_of(lifecycle), times)
    for number in range(10):
        rerank(client, f"text {number} " * (1 + number % 3))
        lifecycle.rollout.settle()
    assert (lifecycle.rollout.active.withdrawals["canary"] == 1) is withdrawn
    if not withdrawn:
        tally = lifecycle.rollout.tally()
        assert tally is not None
        assert (tally.pairs, tally.latency) == (10, pytest.approx(times))


class _Clock:
    """A clock that only runs of models move."""

    def __init__(self) -> None:
        self._now = 0.0

    def perf_counter(self) -> float:
        return self._now

    def drives(self, monkeypatch: pytest.MonkeyPatch, searcher: Searcher, seconds: float) -> None:
        real = searcher.ranker.run

        def run(items: Sequence[Item]) -> Any:
            self._now += seconds * sum(len(item.ids) for item in items)
            return real(items)

        monkeypatch.setattr(searcher.ranker, "run", run)


def test_a_thousand_wishes_with_deadlines_of_a_millisecond_change_nothing(
    begin: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, lifecycle = begin(1, compare=1)
    before = lifecycle.rollout.tally()
    for number in range(1000):
        rerank(client, f"text {number}", **{"x-request-timeout-ms": "1", "x-canary": "always"})
    lifecycle.rollout.settle()
    assert lifecycle.rollout.tally() == before
    assert lifecycle.rollout.active.withdrawals["canary"] == 0
    assert not lifecycle.rollout.copies


def test_deadlines_that_no_release_can_meet_withdraw_no_healthy_canary(begin: Start) -> None:
    client, lifecycle = begin(1, compare=1, max_latency=1000.0)
    for number in range(50):
        rerank(client, f"text {number}", **{"x-request-timeout-ms": "1"})
        lifecycle.rollout.settle()
    tally = lifecycle.rollout.tally()
    assert tally is not None
    assert (tally.requests, tally.missed, tally.errors) == (50, 0, 0)
    assert lifecycle.rollout.active.withdrawals["canary"] == 0


def test_a_release_that_stalls_while_it_is_loaded_is_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the process, which lost a runner to it, would be replaced by one that loads it again."""
    fresh.releases.promote(fresh.publish(1), reason="test")
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=2, poll_s=60))
    lifecycle.start()
    other = fresh.publish(2)
    released = threading.Event()
    real = engine.Engine.run

    def run(self: engine.Engine, items: Sequence[Item]) -> Any:
        if self.role == "encoder":
            released.wait(60)
        return real(self, items)

    monkeypatch.setattr(golden, "CHECK_S", 0.2)
    monkeypatch.setattr(engine.Engine, "run", run)
    canary = Canary(release=other, share=1.0, bounds=Bounds())
    lifecycle.rollout.active.file.begin("canary", canary)
    lifecycle.poll()
    released.set()
    withdrawn = lifecycle.rollout.active.file.read().withdrawn
    assert withdrawn is not None
    assert "the model gave no output in 0.2 s" in withdrawn.reason
    lifecycle.close()
