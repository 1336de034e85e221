"""The gate on planted losses, equal systems, and what must never be compared."""

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.config import GateConfig
from pipeline.errors import ConfigError, SchemaError
from pipeline.evaluation import gate

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
    found = gate.decide(*pair(np.random.default_rng(1), 40, loss=0.0), GateConfig())
    assert not found.promote
    assert found.detectable is not None
    assert found.detectable > 0.01
    assert f"{found.detectable:.4f}" in found.reasons[0]


def test_identical_values_are_promoted() -> None:
    values = per_query(np.random.default_rng(2).random(30))
    found = gate.decide(values, values.sample(frac=1, random_state=0), GateConfig())
    assert found.promote
    assert found.difference == 0


def test_the_first_release_is_promoted_with_that_reason() -> None:
    found = gate.decide(per_query(np.full(3, 0.1)), None, GateConfig())
    assert found.promote
    assert "no live release" in found.reasons[0]


@pytest.mark.parametrize("live", [[0.5] * 9, [0.5] * 11])
def test_different_query_sets_are_not_compared(live: list[float]) -> None:
    found = gate.decide(per_query(np.full(10, 0.9)), per_query(np.array(live)), GateConfig())
    assert not found.promote
    assert "different query sets" in found.reasons[0]


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
    found = gate.decide(per_query(new, slices), per_query(live, slices), GateConfig())
    assert [rule.name for rule in found.rules if rule.verdict == "fail"] == ["slice zh"]
    assert not found.promote
    assert "slice zh" in found.reasons[0]
    small = gate.decide(per_query(new, slices), per_query(live, slices), GateConfig(min_slice_queries=101))
    assert small.promote
    assert {rule.name: rule.verdict for rule in small.rules}["slice zh"] == "not applied"
    assert gate.decide(per_query(new, slices), per_query(live, slices), GateConfig(slice_margin=0.09)).promote


def test_a_decision_is_plain_json() -> None:
    for frames in (pair(np.random.default_rng(4), 60, loss=0.1), (per_query(np.full(1, 0.5)),) * 2):
        found = gate.decide(*frames, GateConfig())
        again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert again["promote"] is found.promote
        assert {rule["name"] for rule in again["rules"]} >= {"same queries", "not worse"}


def test_values_that_are_no_numbers_and_missing_columns_are_refused() -> None:
    good = per_query(np.full(3, 0.5))
    with pytest.raises(SchemaError, match=r"'q1' is not a finite number"):
        gate.decide(per_query(np.array([0.5, np.nan, 0.5])), good, GateConfig())
    with pytest.raises(SchemaError, match="no column 'ndcg@5'"):
        gate.decide(good, good, GateConfig(), measure="ndcg@5")
    with pytest.raises(ConfigError, match=r"gate\.margin"):
        GateConfig(margin=-0.01)
