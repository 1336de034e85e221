"""Tests how far a mean over queries can be trusted, and whether two systems differ, paired by query.

Every number here is a function of the values and a seed. Queries are taken as independent; where one query
stands in a set several times, intervals come out too narrow.

The interval is chosen by simulation (`tests/benchmarks/test_gate_simulation.py`). Share of equal systems whose paired
difference comes out surely above zero, nominal 2.5 %, with 55 % ties (first) and with a rare large loss (second):

    queries    5           10          20          50          250         1,000
    t          0.1, 38     0.8, 34     1.9, 11     1.6, 5.3    2.4, 4.4    2.5, 3.0
    BCa        7.6, 51     9.9, 34     8.6, 11     4.1, 1.3    3.4, 2.6    2.7, 2.5
    outer      0.1, 38     0.8, 34     1.9, 11     1.6, 1.3    2.4, 2.6    2.4, 2.4

The t interval is right for few queries, BCa for skewed differences, so each end is the outer one of the two. A
studentised bootstrap called equal systems with ties better in 4 to 6 % at 10 to 50 queries. No interval is right for
a rare large loss below 50 queries, as many samples do not show it: see `GateConfig.min_queries`.

Sources: Student, Biometrika 6, 1908; Efron, JASA 82, 1987; Hesterberg, The American Statistician 69, 2015, on the
bootstrap's narrowness in small samples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Method = Literal["outer", "t", "bca", "percentile"]
"""`outer` takes at each end whichever of t and bca lies further out."""

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
"""The bounds of a measure that may take any value."""

CONFIDENCE = 0.95
"""Share of the intervals that hold the true value."""
POWER = 0.8
"""Probability with which the smallest detectable difference is shown."""
RESAMPLES = 10_000
"""Resamples of a bootstrap, and sign flips of a test, where the caller names no number."""
FLIPS_A_PAIR = 4
"""Sign flips for each pair of a family, times 1 / 0.05: one flip as extreme is a quarter of what is allowed."""
TIE = 1e-9
"""Two values of a measure that differ by no more are a tie."""

SLACK = 1e-12
"""Share of the sum of sizes by which two sums of the same numbers may differ and count as equal."""

_CELLS = 1_000_000
"""Number of resamples times number of queries that are held in memory at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval that holds the true mean in 95 % of such samples of queries."""

    mean: float
    low: float
    high: float
    queries: int
    """The number of queries for which the measure is defined. With none, mean and ends are NaN."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean difference between two systems on the same queries: new minus old."""

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

    @property
    def better(self) -> bool:
        """Whether the new system is surely better: interval and sign-flip test agree."""
        return self.low > 0 and self.p <= 1 - CONFIDENCE + TIE

    @property
    def worse(self) -> bool:
        """Whether the new system is surely worse: interval and sign-flip test agree."""
        return self.high < 0 and self.p <= 1 - CONFIDENCE + TIE


def intervals(
    values: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 13,
    method: Method = "outer",
    bounds: Bounds = UNBOUNDED,
) -> list[Interval]:
    """The mean of each column with its 95 % interval; all columns see the same resamples.

    Args:
        values: (queries, columns) float; NaN where a measure is not defined for a query, which is left out.
        method: how the interval is made; bca corrects the percentile interval for bias and skew.
        bounds: the measure's range, which no interval leaves; it is the whole interval where there is one value.
    """
    table = _table(values)
    means = np.empty((0, table.shape[1]))
    if method != "t":
        means = np.concatenate(list(_bootstrap(table, resamples, seed)))  # (resamples, columns)
    return [_interval(table[:, column], means[:, column], method, bounds) for column in range(table.shape[1])]


def interval(
    values: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 13,
    method: Method = "outer",
    bounds: Bounds = UNBOUNDED,
) -> Interval:
    """The interval of one column, (queries,); see `intervals`."""
    return intervals(_column(values), resamples=resamples, seed=seed, method=method, bounds=bounds)[0]


def differences(
    new: ArrayLike,
    old: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 13,
    method: Method = "outer",
    bounds: Bounds = UNBOUNDED,
) -> list[Difference]:
    """The difference new − old of each column.

    Args:
        new: (queries, columns) float.
        old: the same queries and columns in the same order.
        resamples: the number of bootstrap resamples, and of sign flips.
        bounds: the range of the values themselves; their differences have twice this range.
    """
    gaps = _table(new) - _table(old)  # (queries, columns)
    reach = bounds[1] - bounds[0]
    spans = intervals(gaps, resamples=resamples, seed=seed, method=method, bounds=(-reach, reach))
    results = []
    for column, (span, p) in enumerate(zip(spans, sign_flip(gaps, flips=resamples, seed=seed), strict=True)):
        gap = gaps[~np.isnan(gaps[:, column]), column]
        wins, losses = int((gap > TIE).sum()), int((gap < -TIE).sum())
        results.append(
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
    return results


def difference(
    new: ArrayLike,
    old: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 13,
    method: Method = "outer",
    bounds: Bounds = UNBOUNDED,
) -> Difference:
    """The difference of one column, (queries,); see `differences`."""
    return differences(_column(new), _column(old), resamples=resamples, seed=seed, method=method, bounds=bounds)[0]


def sign_flip(gaps: ArrayLike, *, flips: int = RESAMPLES, seed: int = 13) -> list[float]:
    """Two-sided p of each column of paired differences under random sign flips: (1 + as extreme) / (1 + flips).

    A p is never 0, and equal systems have p = 1.

    Args:
        gaps: (queries, columns) float; NaN is left out.

    Source: Fisher's randomisation test as recommended by Smucker, Allan and Carterette, CIKM 2007.
    """
    table = np.nan_to_num(_table(gaps))
    seen = np.abs(table.sum(axis=0))
    # Sums of the same numbers in another order differ in the last bits; those must count as equally extreme.
    slack = SLACK * np.abs(table).sum(axis=0)
    extreme = np.zeros(table.shape[1], dtype=np.int64)
    generator = np.random.Generator(np.random.PCG64(seed))
    for rows in _blocks(flips, len(table)):
        signs = 2.0 * generator.integers(0, 2, size=(rows, len(table)), dtype=np.int8) - 1.0
        extreme += (np.abs(signs @ table) >= seen - slack).sum(axis=0)
    return [float(value) for value in (1 + extreme) / (1 + flips)]


def detectable(gaps: ArrayLike, *, power: float = POWER) -> float:
    """The true mean difference that a two-sided 5 % test on such paired differences finds with this power.

    Normal approximation from their standard deviation; infinity for fewer than two queries, which detect nothing.
    """
    gap = np.asarray(gaps, dtype=np.float64)
    if len(gap) < 2:
        return math.inf
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(power)
    return float(reach * gap.std(ddof=1) / math.sqrt(len(gap)))


def holm(p_values: Sequence[float], family: int = 0) -> list[float]:
    """The p values corrected for testing several hypotheses at once, in the order given.

    Args:
        p_values: one for each hypothesis that is tested.
        family: number of hypotheses from which these were chosen by a look at the same data, such as all pairs of
            systems where the best system was picked first; the others count as not rejected. 0 where all are tested.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    hypotheses = max(family, len(p_values))
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, floor = [0.0] * len(p_values), 0.0
    for done, index in enumerate(order):
        floor = max(floor, min(1.0, (hypotheses - done) * p_values[index]))
        corrected[index] = floor
    return corrected


def chosen_differences(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], *, family: int, flips: int = RESAMPLES, seed: int = 13
) -> list[float]:
    """The corrected p values of pairs of systems that a look at the same queries chose from a family of pairs.

    They are those of sign-flip tests, corrected by Holm for the whole family: of equal systems the best is above the
    worst by chance, the more so the more there are. The flips are so many that a p value can be small enough.

    Args:
        pairs: (queries,) values of two systems on the same queries, for each pair that is tested.
        family: number of pairs that could have been chosen.
        flips: the least number of sign flips.
    """
    if not pairs:
        return []
    gaps = np.stack([np.subtract(_table(first), _table(second)) for first, second in pairs], axis=1)
    needed = math.ceil(FLIPS_A_PAIR * family / (1 - CONFIDENCE))
    return holm(sign_flip(gaps, flips=max(flips, needed), seed=seed), family)


def _column(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)[:, np.newaxis]


def _table(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _blocks(rows: int, queries: int) -> Iterator[int]:
    """Numbers of rows that add up to `rows`, each small enough for a block of rows × queries in memory."""
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
    complete = bool(defined.all())
    generator = np.random.Generator(np.random.PCG64(seed))
    for rows in _blocks(resamples, queries):
        drawn = generator.integers(0, queries, size=(rows, queries))
        drawn += np.arange(rows)[:, np.newaxis] * queries
        # How often each query was drawn turns resampling into one matrix product for all columns.
        counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries).astype(np.float64)
        weight = np.full((rows, 1), float(queries)) if complete else counts @ defined
        with np.errstate(invalid="ignore"):
            yield (counts @ values) / weight


def _interval(values: Floats, means: Floats, method: Method, bounds: Bounds) -> Interval:
    defined = values[~np.isnan(values)]
    count = len(defined)
    if not count:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean, means = float(defined.mean()), means[~np.isnan(means)]
    if count == 1:
        return Interval(mean, *bounds, 1)
    if np.ptp(defined) == 0:
        return Interval(mean, mean, mean, count)
    lows, highs = [mean], [mean]
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if method in ("t", "outer"):
        reach = float(stats.t.ppf(tails[1], count - 1) * defined.std(ddof=1) / math.sqrt(count))
        lows.append(mean - reach)
        highs.append(mean + reach)
    if method != "t" and len(means):
        shares = tails if method == "percentile" else _corrected(tails, defined, means, mean)
        low, high = np.quantile(means, shares)
        lows.append(float(low))
        highs.append(float(high))
    return Interval(mean, max(min(lows), bounds[0]), min(max(highs), bounds[1]), count)


def _corrected(tails: Floats, values: Floats, means: Floats, mean: float) -> Floats:
    """The shares of the bootstrap distribution between which a BCa interval lies."""
    # Sums of the same numbers in another order differ in the last bits; such means count as equal.
    ahead = means - mean
    equal = np.abs(ahead) <= SLACK * np.abs(values).mean()
    below = ((~equal & (ahead < 0)).sum() + 0.5 * equal.sum()) / len(means)
    bias = stats.norm.ppf(np.clip(below, 1 / (len(means) + 1), len(means) / (len(means) + 1)))
    gap = values - mean
    acceleration = (gap**3).sum() / (6 * (gap**2).sum() ** 1.5)  # the jackknife's, which for a mean has this form
    shifted = bias + stats.norm.ppf(tails)
    corrected: Floats = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    return corrected
