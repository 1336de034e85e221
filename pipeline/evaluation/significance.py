"""How far a mean over queries can be trusted, and whether two systems differ: resampling, paired by query.

Every number here is a function of the values and a seed. Queries are taken as independent; where one query
stands in a set several times, intervals come out too narrow.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Method = Literal["bca", "percentile"]

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 10_000
TIE = 1e-9
"""Two values of a measure that differ by no more are a tie."""

_CELLS = 1_000_000
"""Resamples times queries held in memory at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval that holds the true mean in 95 % of such samples of queries."""

    mean: float
    low: float
    high: float
    queries: int
    """For which the measure is defined. With none, mean and ends are NaN."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What one system has over another on the same queries."""

    mean: float
    low: float
    high: float
    queries: int
    p: float
    """Two-sided, of a sign-flip permutation test."""
    wins: int
    ties: int
    losses: int
    detectable: float
    """The smallest true difference that as many such queries would show in four of five trials."""


def intervals(
    values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 13, method: Method = "bca"
) -> list[Interval]:
    """The mean of each column with its 95 % bootstrap interval; all columns see the same resamples.

    Args:
        values: (queries, columns) float; NaN where a measure is not defined for a query, which is left out.
        method: bca corrects the percentile interval for bias and skew.

    Source: Efron, Better bootstrap confidence intervals, JASA 82, 1987.
    """
    table = _table(values)
    means = np.concatenate(list(_bootstrap(table, resamples, seed)))  # (resamples, columns)
    return [_interval(table[:, place], means[:, place], method) for place in range(table.shape[1])]


def interval(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 13, method: Method = "bca") -> Interval:
    """`intervals` of one column, (queries,)."""
    return intervals(_column(values), resamples=resamples, seed=seed, method=method)[0]


def differences(
    new: ArrayLike, old: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 13, method: Method = "bca"
) -> list[Difference]:
    """What `new` has over `old` in each column.

    Args:
        new: (queries, columns) float.
        old: the same queries and columns in the same order.
        resamples: of the bootstrap, and sign flips of the test.
    """
    gaps = _table(new) - _table(old)  # (queries, columns)
    spans = intervals(gaps, resamples=resamples, seed=seed, method=method)
    found = []
    for place, (span, p) in enumerate(zip(spans, sign_flip(gaps, flips=resamples, seed=seed), strict=True)):
        gap = gaps[~np.isnan(gaps[:, place]), place]
        wins, losses = int((gap > TIE).sum()), int((gap < -TIE).sum())
        found.append(
            Difference(
                mean=span.mean,
                low=span.low,
                high=span.high,
                queries=span.queries,
                p=p,
                wins=wins,
                ties=len(gap) - wins - losses,
                losses=losses,
                detectable=detectable(gap),
            )
        )
    return found


def difference(
    new: ArrayLike, old: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 13, method: Method = "bca"
) -> Difference:
    """`differences` of one column, (queries,)."""
    return differences(_column(new), _column(old), resamples=resamples, seed=seed, method=method)[0]


def sign_flip(gaps: ArrayLike, *, flips: int = RESAMPLES, seed: int = 13) -> list[float]:
    """Two-sided p of each column of paired differences under random sign flips: (1 + as extreme) / (1 + flips).

    So a p is never 0, and equal systems have p = 1.

    Args:
        gaps: (queries, columns) float; NaN is left out.

    Source: Fisher's randomisation test as recommended by Smucker, Allan and Carterette, CIKM 2007.
    """
    table = np.nan_to_num(_table(gaps))
    seen = np.abs(table.sum(axis=0))
    # Sums of the same numbers in another order differ in the last bits; those must count as equally extreme.
    slack = 1e-12 * np.abs(table).sum(axis=0)
    extreme = np.zeros(table.shape[1], dtype=np.int64)
    generator = np.random.Generator(np.random.PCG64(seed))
    for rows in _blocks(flips, len(table)):
        signs = 2.0 * generator.integers(0, 2, size=(rows, len(table)), dtype=np.int8) - 1.0
        extreme += (np.abs(signs @ table) >= seen - slack).sum(axis=0)
    return [float(value) for value in (1 + extreme) / (1 + flips)]


def detectable(gaps: ArrayLike, *, power: float = POWER) -> float:
    """The true mean difference that a two-sided 5 % test on such paired differences finds with this power.

    Normal approximation from their spread, so a set of fewer than two queries detects nothing: infinity.
    """
    gap = np.asarray(gaps, dtype=np.float64)
    if len(gap) < 2:
        return math.inf
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(power)
    return float(reach * gap.std(ddof=1) / math.sqrt(len(gap)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for being several questions asked at once, in their own order.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, floor = [0.0] * len(p_values), 0.0
    for done, place in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - done) * p_values[place]))
        corrected[place] = floor
    return corrected


def _column(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)[:, np.newaxis]


def _table(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _blocks(rows: int, queries: int) -> Iterator[int]:
    """So many rows at a time that a block of rows x queries stays small."""
    step = max(1, _CELLS // max(queries, 1))
    for start in range(0, rows, step):
        yield min(step, rows - start)


def _bootstrap(table: Floats, resamples: int, seed: int) -> Iterator[Floats]:
    """(rows, columns) means of resampled queries, block by block; NaN where a resample has no defined value."""
    queries = len(table)
    if not queries:
        yield np.full((resamples, table.shape[1]), np.nan)
        return
    defined = ~np.isnan(table)
    values = np.where(defined, table, 0.0)
    whole = bool(defined.all())
    generator = np.random.Generator(np.random.PCG64(seed))
    for rows in _blocks(resamples, queries):
        drawn = generator.integers(0, queries, size=(rows, queries))
        drawn += np.arange(rows)[:, np.newaxis] * queries
        # How often each query was drawn turns resampling into one matrix product for all columns.
        counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries).astype(np.float64)
        weight = np.full((rows, 1), float(queries)) if whole else counts @ defined
        with np.errstate(invalid="ignore"):
            yield (counts @ values) / weight


def _interval(values: Floats, means: Floats, method: Method) -> Interval:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean, means = float(defined.mean()), means[~np.isnan(means)]
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if np.ptp(defined) == 0 or not len(means):
        return Interval(mean, mean, mean, len(defined))
    if method == "bca":
        tails = _corrected(tails, defined, means, mean)
    low, high = np.quantile(means, tails)
    return Interval(mean, float(min(low, mean)), float(max(high, mean)), len(defined))


def _corrected(tails: Floats, values: Floats, means: Floats, mean: float) -> Floats:
    """The tails of a BCa interval of a mean."""
    below = ((means < mean).sum() + 0.5 * (means == mean).sum()) / len(means)
    bias = stats.norm.ppf(np.clip(below, 1 / (len(means) + 1), len(means) / (len(means) + 1)))
    gap = values - mean
    acceleration = (gap**3).sum() / (6 * (gap**2).sum() ** 1.5)  # the jackknife's, which for a mean has this form
    reach = bias + stats.norm.ppf(tails)
    corrected: Floats = stats.norm.cdf(bias + reach / (1 - acceleration * reach))
    return corrected
