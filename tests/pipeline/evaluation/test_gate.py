"""The gate on planted losses, equal systems, and what must never be compared."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from pipeline.config import GateConfig
from pipeline.errors import ConfigError, SchemaError
from pipeline.evaluation import gate
from pipeline.evaluation.gate_rules import Rivals

M = "ndcg@10"


def per_query(values: np.ndarray, slices: list[str] | None = None) -> pd.DataFrame:
    ids = [f"q{number}" for number in range(len(values))]
    return pd.DataFrame({"query_id": ids, "slice": slices or ["one"] * len(values), M: values})


def pair(rng: np.random.Generator, queries: int, loss: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Live values, and new ones that are worse by `loss` on average and move by 0.04 from query to query."""
    live = rng.beta(3, 2, size=queries)
    return per_query(live - loss + rng.normal(0, 0.04, size=queries)), per_query(live)


def test_a_planted_loss_is_caught_and_equal_systems_pass() -> None:
    rng = np.random.default_rng(0)
    caught = [not gate.decide(*pair(rng, 700, loss=0.02), GateConfig()).promote for _ in range(20)]
    alarms = [not gate.decide(*pair(rng, 1_500, loss=0.0), GateConfig()).promote for _ in range(20)]
    assert sum(caught) >= 19
    assert sum(alarms) <= 1


def test_a_small_set_cannot_prove_that_nothing_was_lost_and_says_what_it_can_show() -> None:
    decision = gate.decide(*pair(np.random.default_rng(1), 40, loss=0.0), GateConfig())
    assert not decision.promote
    assert decision.detectable is not None
    assert decision.detectable > 0.01
    assert f"{decision.detectable:.4f}" in decision.reasons[0]


def test_identical_values_are_promoted() -> None:
    values = per_query(np.random.default_rng(2).random(60))
    decision = gate.decide(values, values.sample(frac=1, random_state=0), GateConfig())
    assert decision.promote
    assert decision.difference == 0


def test_the_first_release_is_promoted_with_that_reason() -> None:
    decision = gate.decide(per_query(np.full(3, 0.1)), None, GateConfig())
    assert decision.promote
    assert "no live release" in decision.reasons[0]


@pytest.mark.parametrize("queries", [1, 5, 20, 49])
def test_too_few_queries_never_replace_a_live_release(queries: int) -> None:
    rng = np.random.default_rng(queries)
    live = rng.beta(3, 2, size=queries) / 2
    decision = gate.decide(per_query(live + 0.4), per_query(live), GateConfig())
    assert not decision.promote
    assert "gate.min_queries" in decision.reasons[-1]
    assert gate.decide(per_query(live + 0.4), per_query(live), GateConfig(min_queries=1)).promote is (queries > 1)


@pytest.mark.parametrize("loss", [0.1, -0.1])
def test_a_first_release_surely_below_its_floor_is_refused(loss: float) -> None:
    rng = np.random.default_rng(5)
    new, bm25 = pair(rng, 60, loss=loss)
    decision = gate.decide(new, None, GateConfig(), rivals=Rivals(floors={"BM25": bm25}))
    assert decision.promote is (loss < 0)
    assert ("surely worse than BM25" in decision.reasons[0]) is (loss > 0)


def test_a_floor_that_cannot_be_shown_to_be_missed_does_not_refuse() -> None:
    new, bm25 = pair(np.random.default_rng(6), 4, loss=0.1)
    assert gate.decide(new, None, GateConfig(), rivals=Rivals(floors={"BM25": bm25})).promote


def test_a_ranker_surely_worse_than_bm25_keeps_a_first_release_from_going_live_unless_the_recipe_allows_it() -> None:
    rng = np.random.default_rng(7)
    ranker, bm25 = pair(rng, 400, loss=0.1)
    values = per_query(rng.random(400))
    rivals = Rivals(rerank=ranker, first_stage=bm25)
    first = gate.decide(values, None, GateConfig(), rivals=rivals)
    assert not first.promote
    (reason,) = first.reasons
    assert "/rerank, the ranker alone, is surely worse than BM25" in reason
    assert "gate.rerank_floor = false" in reason
    allowed = gate.decide(values, None, GateConfig(rerank_floor=False), rivals=rivals)
    assert allowed.promote
    assert "surely worse than BM25" in allowed.warnings[0]
    assert '"fused": true' in allowed.warnings[0]
    over_an_encoder = gate.decide(values, values, GateConfig(), rivals=rivals)
    assert not over_an_encoder.promote, "a live release without a ranker does not answer /rerank, this would"
    better = gate.decide(values, None, GateConfig(), rivals=Rivals(rerank=bm25, first_stage=ranker))
    assert better.promote
    assert not better.warnings


def test_a_ranker_that_cannot_be_shown_to_be_worse_than_bm25_goes_live() -> None:
    ranker, bm25 = pair(np.random.default_rng(9), 4, loss=0.1)
    assert gate.decide(bm25, None, GateConfig(), rivals=Rivals(rerank=ranker, first_stage=bm25)).promote


def test_a_ranker_is_held_against_the_live_one_and_one_below_bm25_is_only_warned_of_then() -> None:
    rng = np.random.default_rng(7)
    worse, better = pair(rng, 400, loss=0.1)
    values = per_query(rng.random(400))
    refused = gate.decide(values, values, GateConfig(), rivals=Rivals(rerank=worse, live_rerank=better))
    assert not refused.promote
    assert "/rerank is surely worse than the live release's" in refused.reasons[0]
    rivals = Rivals(rerank=worse, live_rerank=worse, first_stage=better)
    as_before = gate.decide(values, values, GateConfig(), rivals=rivals)
    assert as_before.promote, "to refuse it would keep a ranker live that is as bad"
    assert "surely worse than BM25" in as_before.warnings[0]


def test_twenty_small_losses_do_not_pass_one_by_one() -> None:
    rng = np.random.default_rng(8)
    queries = 1_000
    base = rng.uniform(0.3, 0.7, size=queries)
    lived = [per_query(base)]
    for step in range(1, 21):
        new = per_query(base - 0.004 * step + rng.normal(0, 0.01, size=queries))
        earlier = {f"release {number}": frame for number, frame in enumerate(lived[-6:-1])}
        if gate.decide(new, lived[-1], GateConfig(), rivals=Rivals(earlier=earlier)).promote:
            lived.append(new)
    assert len(lived) <= 2
    alone = [per_query(base - 0.004 * step) for step in range(21)]
    assert all(gate.decide(new, old, GateConfig()).promote for old, new in itertools.pairwise(alone))


@pytest.mark.parametrize("live", [[0.5] * 9, [0.5] * 11])
def test_different_query_sets_are_not_compared(live: list[float]) -> None:
    decision = gate.decide(per_query(np.full(10, 0.9)), per_query(np.array(live)), GateConfig())
    assert not decision.promote
    assert "different query sets" in decision.reasons[0]


def test_a_query_that_stands_twice_or_no_query_at_all_decides_nothing() -> None:
    values = per_query(np.full(10, 0.5))
    assert not gate.decide(pd.concat([values, values[:1]]), values, GateConfig()).promote
    assert not gate.decide(values[:0], values[:0], GateConfig()).promote


def test_a_slice_that_falls_holds_the_release_back() -> None:
    rng = np.random.default_rng(3)
    slices = ["zh"] * 100 + ["en"] * 1_900
    live = rng.beta(3, 2, size=2_000)
    new = live + 0.01 + rng.normal(0, 0.02, size=2_000)
    new[:100] -= 0.08
    decision = gate.decide(per_query(new, slices), per_query(live, slices), GateConfig())
    assert [rule.name for rule in decision.rules if rule.verdict == "fail"] == ["slice zh"]
    assert not decision.promote
    assert "slice zh" in decision.reasons[0]
    small = gate.decide(per_query(new, slices), per_query(live, slices), GateConfig(min_slice_queries=101))
    assert small.promote
    assert {rule.name: rule.verdict for rule in small.rules}["slice zh"] == "not applied"
    just_enough = gate.decide(per_query(new, slices), per_query(live, slices), GateConfig(min_slice_queries=100))
    assert not just_enough.promote
    assert gate.decide(per_query(new, slices), per_query(live, slices), GateConfig(slice_margin=0.09)).promote


def test_a_decision_is_plain_json() -> None:
    for frames in (pair(np.random.default_rng(4), 60, loss=0.1), (per_query(np.full(1, 0.5)),) * 2):
        decision = gate.decide(*frames, GateConfig())
        again = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        assert again["promote"] is decision.promote
        assert {rule["name"] for rule in again["rules"]} >= {"same queries", "not worse"}


def test_values_that_are_no_numbers_and_missing_columns_are_refused() -> None:
    good = per_query(np.full(3, 0.5))
    with pytest.raises(SchemaError, match=r"'q1' is not a finite number"):
        gate.decide(per_query(np.array([0.5, np.nan, 0.5])), good, GateConfig())
    with pytest.raises(SchemaError, match="no column 'ndcg@5'"):
        gate.decide(good, good, GateConfig(), measure="ndcg@5")
    with pytest.raises(ConfigError, match=r"gate\.margin"):
        GateConfig(margin=-0.01)
