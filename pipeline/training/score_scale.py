"""Brings scores of any scale to that of our own teacher, where P(grade ≥ k) = sigmoid(score − b_k)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import TrainingError
from pipeline.text import counted
from pipeline.training.loop.batches import Ints
from pipeline.training.losses import ranking

Floats = NDArray[np.float64]

SLOPE_DEVIATION = 10.0
"""Standard deviation of the normal prior on the slope, for scores of unit deviation. It keeps the slope finite where
the scores separate the grades completely; with many pairs it has no effect."""

PRIOR_PAIRS = 0.5
"""Pairs of each grade added at the mean score, so that a grade that never occurs has a threshold."""


@dataclass(frozen=True, slots=True)
class ScoreScale:
    """The map from an external score to our scale: slope · (score − mean) / deviation − shift."""

    mean: float
    deviation: float
    slope: float
    shift: float
    thresholds: tuple[float, ...]
    """Mean zero."""

    def scores(self, raw: Floats) -> Floats:
        return self.slope * (raw - self.mean) / self.deviation - self.shift


def fit(raw: Floats, grades: Ints, indices: Ints) -> ScoreScale:
    """The ordinal model of the grades by one number, of greatest likelihood on these pairs.

    Args:
        raw: (pairs,) scores, higher is better.
        grades: (pairs,); the highest of all says how many thresholds there are.
        indices: the pairs to learn from.

    Raises:
        TrainingError: no pair has a grade above 0, all scores are equal, or higher ones go with lower grades.

    Source: McCullagh, Regression models for ordinal data, JRSS B 1980.
    """
    top = int(grades.max(initial=0))
    if top < 1 or not len(indices):
        raise TrainingError("teacher scores: no training pair has a grade above 0, so they cannot be brought to scale")
    mean, deviation = float(raw[indices].mean()), float(raw[indices].std())
    # The deviation alone is not 0 for all equal scores: their mean is rounded.
    if not (np.ptp(raw[indices]) > 0 and deviation > 0):
        raise TrainingError(
            f"teacher scores: all {counted(len(indices), 'training pair', 'have')} the score {mean}; nothing to learn"
        )
    slope, thresholds = _most_likely((raw[indices] - mean) / deviation, grades[indices], top)
    if not slope > 0:
        raise TrainingError(
            f"teacher scores: higher scores go with lower grades (slope {slope:.3f} on "
            f"{counted(len(indices), 'training pair')}); "
            "turn their sign, or exchange external_teacher.positive and external_teacher.negative"
        )
    shift = float(thresholds.mean())
    return ScoreScale(mean, deviation, slope, shift, tuple((thresholds - shift).tolist()))


def _most_likely(standardised: Floats, grades: Ints, top: int) -> tuple[float, Tensor]:
    """The slope and the ascending thresholds, (top,), of the ordinal model of these grades, with the priors above.

    Args:
        standardised: (pairs,) scores of mean 0 and deviation 1.
        grades: (pairs,) from 0 to `top`.
        top: the highest grade.
    """
    scores, wanted = torch.from_numpy(standardised), torch.from_numpy(grades)  # (n,) float64, (n,)
    every, none = torch.arange(top + 1), scores.new_zeros(top + 1)
    slope = scores.new_ones(1).requires_grad_()
    counts = np.bincount(grades, minlength=top + 1) + PRIOR_PAIRS
    below = np.cumsum(counts)[:-1]
    start = torch.from_numpy(np.log(below / (counts.sum() - below)))
    first = start[:1].clone().requires_grad_()
    gaps = torch.log(torch.expm1(start.diff())).requires_grad_()

    def thresholds() -> Tensor:
        return torch.cat([first, first + F.softplus(gaps).cumsum(0)])

    def loss() -> Tensor:
        levels = thresholds()
        likely = ranking.ordinal_loss(slope * scores, wanted, levels, total=1)
        prior = PRIOR_PAIRS * ranking.ordinal_loss(none, every, levels, total=1)
        return (likely + prior + (slope / SLOPE_DEVIATION).square().sum() / 2) / len(scores)

    search = torch.optim.LBFGS(
        [slope, first, gaps], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        search.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(step)  # type: ignore[no-untyped-call]
    return float(slope.detach()), thresholds().detach()
