"""The position-based model: fitted to a log of known truth, and as a maximum of its likelihood."""

import numpy as np
import pytest

from pipeline.data.clicks import position_model
from tests.pipeline.data.clicks.simulated_log import EXAMINATION, simulate


@pytest.mark.parametrize("seed", range(3))
def test_examination_and_attractiveness_of_a_simulated_log_are_recovered(seed: int) -> None:
    frame, truth = simulate(seed, impressions=120_000)
    cells = frame.groupby(["q", "shown", "rank"])["hit"].agg(["size", "sum"]).reset_index()
    pair = cells.groupby(["q", "shown"]).ngroup()
    model = position_model.fit(
        pair.to_numpy(np.int64), cells["rank"].to_numpy(np.int64) - 1, *cells[["size", "sum"]].to_numpy(np.int64).T
    )
    assert model.iterations < position_model.MOST_ITERATIONS
    assert model.examination == pytest.approx(EXAMINATION, abs=0.03)
    pairs = cells.assign(pair=pair).drop_duplicates("pair").sort_values("pair")
    true = np.array([truth[key] for key in zip(pairs["q"], pairs["shown"], strict=True)])
    sure = model.examined >= 100
    assert sure.mean() > 0.5
    assert np.abs(model.attractiveness - true)[sure].mean() < 0.05
    rate = (frame.groupby(["q", "shown"])["hit"].mean()).to_numpy()
    naive = np.corrcoef(rate[sure], true[sure])[0, 1]
    assert np.corrcoef(model.attractiveness[sure], true[sure])[0, 1] > max(naive, 0.97)


def test_the_fit_is_a_maximum_of_the_likelihood() -> None:
    """No small step away from the fitted values makes the log likelier; computed by a plain loop over its rows."""
    frame, _ = simulate(7, queries=4, documents=4, impressions=4_000, positions=3)
    cells = frame.groupby(["q", "shown", "rank"])["hit"].agg(["size", "sum"]).reset_index()
    pair, rank = cells.groupby(["q", "shown"]).ngroup().to_numpy(np.int64), cells["rank"].to_numpy(np.int64) - 1
    size, hits = cells[["size", "sum"]].to_numpy(np.int64).T
    model = position_model.fit(pair, rank, size, hits)

    def likelihood(examination: np.ndarray, attractiveness: np.ndarray) -> float:
        total = 0.0
        for p, k, n, c in zip(pair, rank, size, hits, strict=True):
            chance = examination[k] * attractiveness[p]
            total += c * np.log(chance) + (n - c) * np.log(1 - chance)
        # One impression of average attractiveness stands before each pair.
        average = np.bincount(pair, size) @ attractiveness / size.sum()
        return total + float((average * np.log(attractiveness) + (1 - average) * np.log(1 - attractiveness)).sum())

    best = likelihood(model.examination, model.attractiveness)
    rng = np.random.default_rng(0)
    for _ in range(200):
        other = model.examination * np.exp(rng.normal(0, 0.05, 3))
        liked = np.clip(model.attractiveness * np.exp(rng.normal(0, 0.05, len(model.attractiveness))), 1e-6, 1 - 1e-6)
        assert likelihood(np.minimum(other, 1.0), liked) <= best + 0.5
