"""Simulated error rates of the gate: equal systems, a planted loss, and the choice of the interval.

    pytest tests/benchmarks/test_gate_simulation.py -m benchmark -s

Differences are shaped like those of nDCG between two trainings: 55 % of the queries tie, the others follow a Laplace
distribution. The second shape is skewed: one query in ten loses 0.27, the others gain 0.03, so the mean is 0.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipeline.config import GateConfig
from pipeline.evaluation import gate, gate_rules, significance

Floats = NDArray[np.float64]
MEASURE = "ndcg@10"


def tied(rng: np.random.Generator, queries: int) -> Floats:
    gaps = rng.laplace(0, 0.1, queries)
    gaps[rng.random(queries) < 0.55] = 0.0
    return np.asarray(gaps, dtype=np.float64)


def skewed(rng: np.random.Generator, queries: int) -> Floats:
    return np.where(rng.random(queries) < 0.1, -0.27, 0.03) + rng.normal(0, 0.02, queries)


def decision(gaps: Floats, config: GateConfig) -> tuple[gate.Decision, bool]:
    """The gate's decision on paired differences, and whether it calls the new system better."""
    ids = [f"q{number}" for number in range(len(gaps))]
    live = pd.DataFrame({"query_id": ids, MEASURE: np.full(len(gaps), 0.5)})
    decided = gate.decide(live.assign(**{MEASURE: np.clip(0.5 + gaps, 0, 1)}), live, config)
    return decided, any("/search is surely better" in rule.detail for rule in decided.rules)


def rates(queries: int, trials: int, loss: float, seed: int) -> tuple[float, float, float]:
    """Shares of trials called better, and promoted; and the mean detectable difference."""
    rng = np.random.default_rng(seed)
    decided = [decision(tied(rng, queries) - loss, GateConfig()) for _ in range(trials)]
    return (
        float(np.mean([better for _, better in decided])),
        float(np.mean([item.promote for item, _ in decided])),
        float(np.mean([item.detectable for item, _ in decided])),
    )


@pytest.mark.parametrize("queries", [1, 5, 20, 60])
def test_equal_systems_are_seldom_called_better(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_rules, "RESAMPLES", 500)
    better, promoted, _ = rates(queries, trials=100, loss=0.0, seed=queries)
    assert better <= 0.06  # 3 %, and the error of 100 trials
    assert promoted == 0 or queries >= GateConfig().min_queries


def test_a_planted_loss_of_the_margin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_rules, "RESAMPLES", 500)
    _, promoted, _ = rates(250, trials=100, loss=0.005, seed=1)
    assert promoted <= 0.07


@pytest.mark.benchmark
@pytest.mark.parametrize("queries", [1, 5, 20, 50, 250, 1_000])
def test_gate_errors(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_rules, "RESAMPLES", 1_000)
    trials = 1_000
    equal, passed, detectable = rates(queries, trials, loss=0.0, seed=queries)
    _, planted, _ = rates(queries, trials, loss=0.005, seed=queries + 1)
    shown = f"{detectable:.4f}" if math.isfinite(detectable) else "none"
    print(
        f"\n{queries:>6,} queries: equal called better {equal:.1%}, equal promoted {passed:.1%}, −0.005 refused "
        f"{1 - planted:.1%}, smallest detectable difference {shown}"
    )
    error = 1.645 * math.sqrt(0.03 * 0.97 / trials)
    assert equal <= 0.03 + error
    assert 1 - planted >= 0.95


@pytest.mark.benchmark
@pytest.mark.parametrize("shape", [tied, skewed])
def test_interval_errors(shape: Callable[[np.random.Generator, int], Floats]) -> None:
    """Prints the share of samples of mean 0 whose interval lies above 0, for each kind of interval."""
    for queries in (5, 10, 20, 50, 250, 1_000):
        rng = np.random.default_rng(queries)
        samples = np.stack([shape(rng, queries) for _ in range(1_000)], axis=1)
        methods: Sequence[significance.Method] = ("t", "bca", "outer")
        above = {
            method: np.mean([span.low > 0 for span in significance.intervals(samples, resamples=1_000, method=method)])
            for method in methods
        }
        print(f"\n{shape.__name__} {queries:>6,}: " + ", ".join(f"{name} {share:.1%}" for name, share in above.items()))
        if shape is tied or queries >= 50:
            assert above["outer"] <= 0.035
