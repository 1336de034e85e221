"""Tests of whom a pair blames, and that nothing but blamed pairs decides about a canary."""

import math
import random
from statistics import median

import pytest

from serving.rollout import budget
from serving.rollout.budget import CopyBudget
from serving.rollout.canary import CanaryMonitor
from serving.rollout.comparison import ComparisonResult
from serving.rollout.pairs import COPY_S, Attempt, Ending, Pair
from serving.rollout.trials import Bounds

NOTHING = ComparisonResult([], {})
WELL = Attempt("answered", 0.1, 0.1, NOTHING)
FAILED = Attempt("failed", 0.1, 0.1)
STOPPED = Attempt("stopped")
STARVED = Attempt("late", COPY_S, 0.2 * COPY_S)
STALLED = Attempt("late", COPY_S, COPY_S)
SLOW = Attempt("answered", 3.0, 3.0, NOTHING)
DELAYED = Attempt("answered", 3.0, 0.9, NOTHING)
HEAVY = Attempt("answered", 0.9 * COPY_S, 0.9 * COPY_S, NOTHING)


@pytest.mark.parametrize(
    ("live", "trial", "blames"),
    [
        (WELL, WELL, (False, False)),
        (WELL, FAILED, (False, True)),
        (FAILED, WELL, (True, False)),
        (FAILED, FAILED, (True, True)),
        (WELL, STALLED, (False, True)),
        (STALLED, WELL, (True, False)),
        (WELL, STARVED, None),  # It waited for others.
        (STARVED, WELL, None),
        (HEAVY, STALLED, None),  # A question for which both need that long.
        (STALLED, STALLED, None),
        (STALLED, FAILED, None),
        (WELL, SLOW, (False, True)),
        (SLOW, WELL, (True, False)),
        (SLOW, SLOW, (False, False)),
        (WELL, DELAYED, (False, False)),
        (Attempt("answered", 1.9, 1.9, NOTHING), Attempt("answered", 2.1, 2.1, NOTHING), (False, False)),
        (WELL, STOPPED, None),
        (STOPPED, FAILED, None),
    ],
)
def test_a_late_answer_is_the_models_fault_only_where_the_model_ran_that_long(
    live: Attempt, trial: Attempt, blames: tuple[bool, bool] | None
) -> None:
    assert Pair(live, trial).blames(1.5, 2.0) == blames


def drawn(rng: random.Random) -> Attempt:
    ending: Ending = rng.choices(("answered", "failed", "late", "stopped"), (20, 1, 1, 1))[0]
    seconds = rng.choice((0.001, 0.1, 3.0, 20.0, COPY_S))
    answer = NOTHING if ending == "answered" else None
    return Attempt(ending, seconds, seconds * rng.random(), answer)


@pytest.mark.parametrize("seed", range(60))
def test_random_endings_withdraw_a_canary_exactly_when_a_count_from_the_start_says_so(seed: int) -> None:
    rng = random.Random(seed)
    bounds = Bounds(
        min_requests=rng.choice((1, 10, 100)),
        min_compared=rng.choice((1, 10, 100)),
        max_errors=rng.choice((0.0, 0.02, 0.3)),
        max_latency=2.0,
    )
    deadline_s = rng.choice((1.0, math.inf))
    monitor, past = CanaryMonitor(bounds, deadline_s), []
    for _ in range(300):
        pair = Pair(drawn(rng), drawn(rng))
        before = monitor.tally()
        reason = monitor.paired("q", pair)
        if pair.blames(2.0, deadline_s) is None:
            assert (reason, monitor.tally()) == (None, before)  # Nobody can tell, so nothing moves.
            continue
        past.append(pair)
        alone = [
            blames for ending in past if (blames := ending.blames(2.0, deadline_s)) in ((False, True), (True, False))
        ]
        missed, live_missed = alone.count((False, True)), alone.count((True, False))
        out = missed - live_missed > bounds.max_errors * max(len(past), bounds.min_requests)
        if pair.answered:
            ratios = [ending.trial.seconds / ending.live.seconds for ending in past if ending.answered]
            # Those that are still to come, before latencies count, may all be fast.
            fast = [0.0] * (bounds.min_compared - len(ratios))
            out = out or sum(ratio > 2.0 for ratio in ratios) * 2 > len(ratios) + len(fast)
            assert monitor.tally().latency == pytest.approx(median(ratios))
        assert (reason is not None) is out
        tally = monitor.tally()
        assert (tally.pairs, tally.missed, tally.live_missed) == (len(past), missed, live_missed)


@pytest.mark.parametrize("seed", range(20))
def test_a_canary_that_is_never_worse_on_the_same_question_stays(seed: int) -> None:
    rng = random.Random(seed)
    monitor = CanaryMonitor(Bounds(min_requests=1, min_compared=1, max_errors=0.0, max_latency=1.0), 1.0)
    for _ in range(300):
        live = drawn(rng)
        trial = rng.choice((live, STOPPED, STARVED, Attempt("answered", 0.5 * live.seconds, 0.0, NOTHING)))
        assert monitor.paired("q", Pair(live, trial)) is None


def test_copies_take_a_tenth_of_the_runners_in_the_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: clock[0])
    runners, seconds = 4, 10_000
    copies = CopyBudget(runners)
    worked = 0.0
    rng = random.Random(5)
    for _ in range(seconds):
        clock[0] += 1.0
        while copies.allows(urgent=rng.random() < 0.5):
            run_s = rng.random() * 3
            copies.charge(run_s)
            worked += run_s
    assert 0.095 < worked / (runners * seconds) < 0.11
    assert not copies.allows(urgent=False)
    clock[0] += 60.0
    copies.charge(budget.SAVED_S * runners / 2)
    assert not copies.allows(urgent=False)
    assert copies.allows(urgent=True)  # Half is kept for those that tell text from model.
