"""When a canary is out of bounds, and what a comparison of two answers says."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.errors import ConfigError, MissingError
from pipeline.evaluation.metrics import by_query
from serving.rollout import comparison
from serving.rollout.canary import CanaryMonitor
from serving.rollout.comparison import Comparison, ComparisonResult, Rerank, Search
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.lottery import Lottery
from serving.rollout.pairs import Attempt, Pair
from serving.rollout.traffic import AnsweredRequest, Route
from serving.rollout.trials import Bounds, Canary
from tests.serving.patience import patient


def request(monitor: CanaryMonitor, times: int, *, canary: bool, failed: bool = False) -> list[str]:
    """Counts requests, on all of which the release's model failed or on none; returns the reasons."""
    reasons = []
    for _ in range(times):
        monitor.requested(canary=canary)
        if failed:
            reasons.append(monitor.failed(canary=canary))
    return [reason for reason in reasons if reason]


def answered(seconds: float) -> Attempt:
    return Attempt("answered", seconds, seconds, ComparisonResult([], {}))


def pair(monitor: CanaryMonitor, times: int, *, live: Attempt, trial: Attempt) -> list[str]:
    reasons = [monitor.paired("q", Pair(live, trial)) for _ in range(times)]
    return [reason for reason in reasons if reason]


def compared(overlap: float | None = None, ndcg: tuple[float, float] | None = None) -> Pair:
    return Pair(answered(0.1), answered(0.1), Comparison(overlap=overlap, changes=[], ndcg=ndcg))


def test_errors_count_as_soon_as_they_would_be_too_many_later() -> None:
    monitor = CanaryMonitor(Bounds(min_requests=200, max_errors=0.01), math.inf)
    assert request(monitor, 2, canary=True, failed=True) == []  # 2 of 200 are just in bounds.
    (reason,) = request(monitor, 1, canary=True, failed=True)
    assert reason == "3 of 3 requests failed, and 0 of 0 live ones; max_errors is 0.01"


def test_errors_that_live_has_too_are_not_held_against_the_canary() -> None:
    monitor = CanaryMonitor(Bounds(min_requests=100, max_errors=0.01), math.inf)
    request(monitor, 90, canary=False)
    request(monitor, 10, canary=False, failed=True)
    request(monitor, 100, canary=True)
    assert request(monitor, 12, canary=True, failed=True) == []  # 112 requests, 11 % in bounds.
    assert len(request(monitor, 1, canary=True, failed=True)) == 1


def test_questions_that_the_canary_alone_leaves_open_count_beyond_those_of_live() -> None:
    monitor = CanaryMonitor(Bounds(min_requests=200, max_errors=0.01), math.inf)
    well, failed = answered(0.1), Attempt("failed", 0.1, 0.1)
    assert pair(monitor, 50, live=failed, trial=failed) == []  # The texts are at fault.
    assert pair(monitor, 5, live=failed, trial=well) == []
    assert pair(monitor, 7, live=well, trial=failed) == []
    (reason,) = pair(monitor, 1, live=well, trial=failed)
    assert reason.startswith("8 of 63 questions put to both releases had no answer in time from the canary alone,")
    assert "and 5 from the live release alone; max_errors is 0.01" in reason


def test_latency_is_the_median_ratio_on_the_same_questions() -> None:
    monitor = CanaryMonitor(Bounds(min_compared=40, max_latency=1.5), math.inf)
    for seconds in (0.001, 0.1, 7.0, 30.0) * 10:  # Whatever the questions cost.
        assert pair(monitor, 1, live=answered(seconds), trial=answered(1.4 * seconds)) == []
    assert pair(monitor, 9, live=answered(0.1), trial=answered(99)) == []  # A few slow ones do not move the median.
    assert monitor.tally().latency == pytest.approx(1.4)
    (reason, *_) = pair(monitor, 60, live=answered(0.1), trial=answered(0.16))
    assert "1.60 times the live release's seconds" in reason


def test_slow_answers_count_as_soon_as_they_would_move_the_median_later() -> None:
    monitor = CanaryMonitor(Bounds(min_compared=100, max_latency=1.5), math.inf)
    assert pair(monitor, 50, live=answered(0.1), trial=answered(5)) == []
    (reason,) = pair(monitor, 1, live=answered(0.1), trial=answered(5))
    assert reason.startswith("50.00 times the live release's seconds, the median of 51 questions")


def test_overlap_counts_when_enough_was_compared() -> None:
    monitor = CanaryMonitor(Bounds(min_compared=4, min_overlap=0.5), math.inf)
    assert [monitor.paired("q", compared(overlap)) for overlap in (0.0, 0.0, None, 1.0)] == [None] * 4
    assert monitor.paired("q", compared(0.9)) == (
        "the first results overlap by 0.475 with the live release's in 4 requests; min_overlap is 0.5"
    )


def test_ndcg_counts_each_judged_query_once() -> None:
    monitor = CanaryMonitor(Bounds(min_judged=2, max_ndcg_drop=0.1), math.inf)
    for _ in range(50):  # However often it is asked.
        assert monitor.paired("popular", compared(ndcg=(0.2, 0.9))) is None
    reason = monitor.paired("other", compared(ndcg=(0.9, 0.6)))
    assert reason == "nDCG@10 is 0.5500 on 2 judged queries, the live release's 0.7500; max_ndcg_drop is 0.1"
    monitor = CanaryMonitor(Bounds(min_judged=1, max_ndcg_drop=0.1), math.inf)
    assert monitor.paired("better", compared(ndcg=(0.9, 0.2))) is None


@pytest.mark.parametrize("wrong", [{"max_errors": 1.1}, {"min_judged": 0}, {"max_latency": float("nan")}])
def test_impossible_bounds_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Bounds(**wrong)


def test_a_comparison_by_hand() -> None:
    question = Rerank("q", [f"text {index}" for index in range(6)])
    first = question.outcome([3.0, 2.0, 1.0, 0.0, -1.0, -2.0])
    second = question.outcome([3.0, 2.0, -5.0, 4.0, -1.0, -2.0])
    comparison_result = comparison.compare(question, first, second, {"q": {"0": 1}})
    assert comparison_result.overlap == pytest.approx(2 / 3)  # The first three of six: 0, 1, 2 and 3, 0, 1.
    changes = [0, 0, abs(1 / (1 + np.exp(-1)) - 1 / (1 + np.exp(5))), abs(0.5 - 1 / (1 + np.exp(-4))), 0, 0]
    assert sorted(comparison_result.changes) == pytest.approx(sorted(changes))
    assert comparison_result.ndcg is None  # Grades are of documents with ids, which the texts of a rerank request lack.


def test_one_text_has_no_order_to_compare() -> None:
    question = Rerank("q", ["only"])
    assert comparison.compare(question, question.outcome([1.0]), question.outcome([9.0]), {}).overlap is None


@pytest.mark.parametrize("seed", range(20))
def test_ndcg_is_that_of_the_report(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 4, size=30)
    order = rng.permutation(30)
    scores = np.empty(30)
    scores[order] = -np.arange(30)
    (expected,) = by_query(np.zeros(30, int), grades, scores)["ndcg@10"]
    known = {str(index): int(grade) for index, grade in enumerate(grades)}
    assert comparison.ndcg(list(map(str, order)), known, 10) == pytest.approx(expected)


@dataclass(frozen=True)
class Asked:
    query: str
    judged: bool = True
    chars: int = 1
    depth: int = 10

    def ask(self, searcher: Any, options: Any) -> ComparisonResult:
        raise NotImplementedError


def write_judgments(folder: Path, rows: list[tuple[str, str, int, str]], texts: dict[str, str]) -> None:
    folder.mkdir()
    queries = pa.table({"query_id": list(texts), "text": list(texts.values())})
    schema.write(queries, folder / "queries.parquet", "queries")
    columns = dict(zip(("query_id", "doc_id", "grade", "split"), map(list, zip(*rows, strict=True)), strict=True))
    schema.write(pa.table(columns), folder / "judgments.parquet", "judgments")


def test_grades_are_found_by_the_normalised_query_without_what_was_trained_on(tmp_path: Path) -> None:
    rows = [("1", "a", 2, "test"), ("1", "b", 0, "test"), ("2", "a", 1, "train"), ("3", "a", 0, "valid")]
    write_judgments(tmp_path / "data", rows, {"1": "Sort  a List", "2": "seen", "3": "nothing fits"})
    grades = comparison.read_grades(tmp_path / "data")
    assert grades == {"sort a list": {"a": 2, "b": 0}}
    assert comparison.grades_of(Asked("SORT a list"), grades) == {"a": 2, "b": 0}
    assert comparison.grades_of(Asked("SORT a list", judged=False), grades) is None
    write_judgments(tmp_path / "useless", rows[2:], {"2": "seen", "3": "nothing fits"})
    with pytest.raises(MissingError, match="no judged query outside the train split"):
        comparison.read_grades(tmp_path / "useless")


QUESTION = Rerank("q", ["a text", "another"])


def put(lifecycle: Lifecycle, route: Route, count: int, status: int, *, private: bool = False) -> None:
    """Counts requests with this status, each with an id of its own, and waits for what is asked about them."""
    for number in range(count):
        question = None if private else QUESTION
        lifecycle.rollout.answered(
            route, AnsweredRequest(request_id=f"{status} {number}", status=status, question=question, private=private)
        )
        lifecycle.rollout.settle()


@pytest.mark.parametrize(
    ("wish", "status", "withdrawn"),
    [("always", 500, False), ("always", 504, False), (None, 504, False), (None, 503, False), (None, 500, True)],
)
def test_neither_wishes_nor_deadlines_of_clients_withdraw_a_canary(
    fresh: Any, wish: Any, status: int, withdrawn: bool
) -> None:
    lifecycle, route = canary_route(fresh, wish)
    put(lifecycle, route, 10, status)
    assert (lifecycle.rollout.active.withdrawals["canary"] == 1) is withdrawn
    lifecycle.close()


@pytest.mark.parametrize(("wish", "status"), [("never", 500), (None, 504)])
def test_failures_that_clients_force_on_the_live_release_hide_no_bad_canary(fresh: Any, wish: Any, status: int) -> None:
    lifecycle, route = canary_route(fresh, None)
    live = Route(lifecycle.current, "live", wished=wish is not None)
    put(lifecycle, live, 200, status)
    assert lifecycle.rollout.active.withdrawals["canary"] == 0
    put(lifecycle, route, 2, 500)
    assert lifecycle.rollout.active.withdrawals["canary"] == 1
    lifecycle.close()


@pytest.mark.parametrize("name", ["ranker", "encoder"])
def test_a_text_that_no_release_can_answer_decides_nothing(fresh: Any, monkeypatch: Any, name: str) -> None:
    lifecycle, route = canary_route(fresh, None)
    question = QUESTION if name == "ranker" else Search("a list", 3, 5, {})

    def fail(items: Any) -> Any:
        raise RuntimeError("these texts break every model")

    for searcher in (lifecycle.current, route.searcher):
        monkeypatch.setattr(getattr(searcher, name), "run", fail)
    for number in range(20):
        lifecycle.rollout.answered(route, AnsweredRequest(request_id=str(number), status=500, question=question))
        lifecycle.rollout.settle()
    tally = lifecycle.rollout.tally()
    assert tally is not None
    assert (tally.requests, tally.errors) == (20, 0)
    lifecycle.close()


def test_a_failure_on_a_request_that_must_not_be_kept_counts_by_itself(fresh: Any) -> None:
    lifecycle, route = canary_route(fresh, None)
    put(lifecycle, route, 2, 500, private=True)
    assert lifecycle.rollout.active.withdrawals["canary"] == 1
    assert not lifecycle.rollout.copies
    lifecycle.close()


def test_a_request_id_that_is_sent_again_decides_nothing(fresh: Any) -> None:
    """Whoever sends an id again knows which release answers it, and could send what makes that one fail."""
    lifecycle, route = canary_route(fresh, None)
    for _ in range(50):
        lifecycle.rollout.answered(route, AnsweredRequest(request_id="the same", status=500, question=QUESTION))
        lifecycle.rollout.settle()
    assert lifecycle.rollout.active.withdrawals["canary"] == 0
    lifecycle.close()


def test_two_processes_draw_differently_for_one_request_id() -> None:
    trial = Canary(release="a", share=1.0, bounds=Bounds())
    draws = [{lottery.draw(trial, str(number)) for number in range(20)} for lottery in (Lottery(), Lottery())]
    assert len(draws[0]) == 20
    assert not draws[0] & draws[1]


def canary_route(fresh: Any, wish: Any) -> tuple[Lifecycle, Route]:
    """A canary that gets all requests, and the route of one request to it."""
    fresh.releases.promote(fresh.publish(1), reason="test")
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, poll_s=60))
    lifecycle.start()
    bounds = Bounds(compare=0)
    lifecycle.rollout.active.file.begin("canary", Canary(release=fresh.publish(2), share=1.0, bounds=bounds))
    lifecycle.poll()
    return lifecycle, lifecycle.rollout.choose(lifecycle.current, "a", wish)
