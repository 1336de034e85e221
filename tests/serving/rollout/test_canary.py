"""When a canary is out of bounds, and what a comparison of two answers says."""

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
from serving.rollout.comparison import Comparison, ComparisonResult, Rerank
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.lottery import Lottery
from serving.rollout.traffic import Route
from serving.rollout.trials import Bounds, Canary
from serving.settings import Settings


def answer(watch: CanaryMonitor, times: int, *, canary: bool, status: int = 200, seconds: float = 0.1) -> list[str]:
    found = [watch.answered(canary=canary, status=status, seconds=seconds, computed=10) for _ in range(times)]
    return [fault for fault in found if fault]


def test_errors_count_as_soon_as_they_would_be_too_many_later() -> None:
    watch = CanaryMonitor(Bounds(min_requests=200, max_errors=0.01))
    assert answer(watch, 2, canary=True, status=503) == []  # 2 of 200 are just in bounds.
    (fault,) = answer(watch, 1, canary=True, status=500)
    assert fault == "3 of 3 requests failed, and 0 of 0 live ones; max_errors is 0.01"


def test_errors_that_live_has_too_are_not_held_against_the_canary() -> None:
    watch = CanaryMonitor(Bounds(min_requests=100, max_errors=0.01))
    answer(watch, 90, canary=False)
    answer(watch, 10, canary=False, status=504)
    answer(watch, 100, canary=True)
    assert answer(watch, 12, canary=True, status=504) == []  # 112 requests, 11 % in bounds.
    assert len(answer(watch, 1, canary=True, status=504)) == 1


def test_latency_is_a_ratio_of_medians_for_each_computed_text() -> None:
    watch = CanaryMonitor(Bounds(min_requests=20, max_latency=1.5))
    answer(watch, 40, canary=False, seconds=0.1)
    assert answer(watch, 40, canary=True, seconds=0.14) == []
    answer(watch, 9, canary=True, seconds=99)  # A few slow ones do not move the median.
    assert watch.tally().latency == pytest.approx(1.4)
    faults = answer(watch, 60, canary=True, seconds=0.16)
    assert "16.00 ms a computed text, 1.60 times the live release's" in faults[0]


def test_what_was_cached_has_no_latency() -> None:
    watch = CanaryMonitor(Bounds(min_requests=1))
    watch.answered(canary=True, status=200, seconds=5, computed=0)
    assert watch.tally().latency is None


def compared(overlap: float | None = None, ndcg: tuple[float, float] | None = None) -> Comparison:
    return Comparison(overlap=overlap, changes=[], ndcg=ndcg)


def test_overlap_counts_when_enough_was_compared() -> None:
    watch = CanaryMonitor(Bounds(min_compared=4, min_overlap=0.5))
    assert [watch.compared("q", compared(overlap)) for overlap in (0.0, 0.0, None, 1.0)] == [None] * 4
    assert watch.compared("q", compared(0.9)) == (
        "the first results overlap by 0.475 with the live release's in 4 requests; min_overlap is 0.5"
    )


def test_ndcg_counts_each_judged_query_once() -> None:
    watch = CanaryMonitor(Bounds(min_judged=2, max_ndcg_drop=0.1))
    for _ in range(50):  # However often it is asked.
        assert watch.compared("popular", compared(ndcg=(0.2, 0.9))) is None
    fault = watch.compared("other", compared(ndcg=(0.9, 0.6)))
    assert fault == "nDCG@10 is 0.5500 on 2 judged queries, the live release's 0.7500; max_ndcg_drop is 0.1"
    watch = CanaryMonitor(Bounds(min_judged=1, max_ndcg_drop=0.1))
    assert watch.compared("better", compared(ndcg=(0.9, 0.2))) is None


@pytest.mark.parametrize("wrong", [{"max_errors": 1.1}, {"min_judged": 0}, {"max_latency": float("nan")}])
def test_impossible_bounds_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Bounds(**wrong)


def test_a_comparison_by_hand() -> None:
    question = Rerank("q", [f"text {place}" for place in range(6)])
    first = question.outcome([3.0, 2.0, 1.0, 0.0, -1.0, -2.0])
    second = question.outcome([3.0, 2.0, -5.0, 4.0, -1.0, -2.0])
    found = comparison.compare(question, first, second, {"q": {"0": 1}})
    assert found.overlap == pytest.approx(2 / 3)  # The first three of six: 0, 1, 2 and 3, 0, 1.
    changes = [0, 0, abs(1 / (1 + np.exp(-1)) - 1 / (1 + np.exp(5))), abs(0.5 - 1 / (1 + np.exp(-4))), 0, 0]
    assert sorted(found.changes) == pytest.approx(sorted(changes))
    assert found.ndcg is None  # Grades are of documents with ids, which the texts of a rerank request lack.


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
    known = {str(place): int(grade) for place, grade in enumerate(grades)}
    assert comparison.ndcg(list(map(str, order)), known, 10) == pytest.approx(expected)


@dataclass(frozen=True)
class Asked:
    query: str
    judged: bool = True
    chars: int = 1
    depth: int = 10

    def ask(self, searcher: Any, terms: Any) -> ComparisonResult:
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


@pytest.mark.parametrize(
    ("wish", "status", "withdrawn"),
    [("always", 500, False), ("always", 504, False), (None, 504, False), (None, 500, True)],
)
def test_neither_wishes_nor_deadlines_of_clients_withdraw_a_canary(
    fresh: Any, wish: Any, status: int, withdrawn: bool
) -> None:
    lifecycle, route = canary_route(fresh, wish)
    for number in range(10):
        lifecycle.rollout.answered(route, str(number), status=status, seconds=1.0, computed=1, routed=None)
    assert (lifecycle.rollout.withdrawals["canary"] == 1) is withdrawn
    lifecycle.close()


@pytest.mark.parametrize(("wish", "status"), [("never", 500), (None, 504)])
def test_failures_that_clients_force_on_the_live_release_hide_no_bad_canary(fresh: Any, wish: Any, status: int) -> None:
    lifecycle, route = canary_route(fresh, None)
    live = Route(lifecycle.current, "live", wished=wish is not None)
    for number in range(200):
        lifecycle.rollout.answered(live, str(number), status=status, seconds=1.0, computed=1, routed=None)
    for number in range(2):
        lifecycle.rollout.answered(route, str(number), status=500, seconds=1.0, computed=1, routed=None)
    assert lifecycle.rollout.withdrawals["canary"] == 1
    lifecycle.close()


def test_a_request_id_that_is_sent_again_decides_nothing(fresh: Any) -> None:
    """Whoever sends an id again knows which release answers it, and could send what makes that one fail."""
    lifecycle, route = canary_route(fresh, None)
    for _ in range(50):
        lifecycle.rollout.answered(route, "the same", status=500, seconds=1.0, computed=1, routed=None)
    assert lifecycle.rollout.withdrawals["canary"] == 0
    lifecycle.close()


def test_two_processes_draw_differently_for_one_request_id() -> None:
    trial = Canary(release="a", share=1.0, bounds=Bounds())
    draws = [{lottery.draw(trial, str(number)) for number in range(20)} for lottery in (Lottery(), Lottery())]
    assert len(draws[0]) == 20
    assert not draws[0] & draws[1]


def canary_route(fresh: Any, wish: Any) -> tuple[Lifecycle, Route]:
    """A canary that gets all requests, and the route of one request to it."""
    fresh.releases.promote(fresh.publish(1), reason="test")
    lifecycle = Lifecycle(Settings(workspace=fresh.path, threads=1, poll_s=60))
    lifecycle.start()
    lifecycle.rollout.file.begin("canary", Canary(release=fresh.publish(2), share=1.0, bounds=Bounds()))
    lifecycle.poll()
    return lifecycle, lifecycle.rollout.choose(lifecycle.current, "a", wish)
