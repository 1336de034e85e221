"""Resampling against closed forms, SciPy and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation import significance


def test_the_interval_of_a_normal_sample_is_the_textbook_one() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.2, size=4_000)
    interval = significance.interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=half / 20)
    assert interval.high == pytest.approx(values.mean() + half, abs=half / 20)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_the_interval_of_a_skewed_sample_equals_scipy(method: str) -> None:
    values = np.random.default_rng(1).exponential(size=60)
    interval = significance.interval(values, resamples=100_000, method=method)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=100_000,
        batch=10_000,
        method="BCa" if method == "bca" else method,
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = expected.high - expected.low
    assert interval.low == pytest.approx(expected.low, abs=width / 40)
    assert interval.high == pytest.approx(expected.high, abs=width / 40)


@pytest.mark.parametrize("unit", [0.1, 1 / 3, 0.7])
def test_tied_means_count_as_tied_in_any_unit(unit: float) -> None:
    """Sums of 0.1, unlike those of 1, differ in their last bits by their order; half of such ties would be no ties."""
    for counts in ([3, -2, 2, 3], [2, 2, 2, -2], [1, 0, 0, -1, 0, 1, 1, 0, 0, 1]):
        exact = significance.interval(counts, method="bca", resamples=2_000)
        scaled = significance.interval(np.array(counts) * unit, method="bca", resamples=2_000)
        np.testing.assert_allclose([scaled.low, scaled.high], np.array([exact.low, exact.high]) * unit, rtol=1e-9)


def test_the_interval_covers_the_truth_in_about_95_of_100_samples() -> None:
    rng = np.random.default_rng(3)
    samples = rng.beta(0.5, 0.3, size=(80, 1_000))  # shaped like nDCG: heaps at 0 and 1
    spans = significance.intervals(samples, resamples=1_000)
    assert 0.93 <= np.mean([span.low <= 0.5 / 0.8 <= span.high for span in spans]) <= 0.97


def test_a_seed_gives_one_answer_however_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random((50, 2))
    at_once = significance.intervals(values, resamples=500, method="bca")
    assert at_once == significance.intervals(values, resamples=500, method="bca")
    assert at_once != significance.intervals(values, resamples=500, seed=14, method="bca")
    monkeypatch.setattr(significance, "_CELLS", 1_000)
    cut = significance.intervals(values, resamples=500, method="bca")
    assert [item.low for item in cut] == pytest.approx([item.low for item in at_once])


def test_undefined_values_are_left_out() -> None:
    values = np.random.default_rng(5).random(200)
    holes = np.concatenate([values, np.full(100, np.nan)])
    interval, expected = significance.interval(holes), significance.interval(values)
    assert interval.queries == 200
    assert interval.mean == pytest.approx(expected.mean)
    assert interval.low == pytest.approx(expected.low, abs=0.004)
    nothing = significance.interval(np.full(5, np.nan))
    assert nothing.queries == 0
    assert math.isnan(nothing.mean)


@pytest.mark.parametrize("values", [[], [0.5] * 2, [0.5] * 9])
def test_constant_values_have_no_width_and_raise_nothing(values: list[float]) -> None:
    interval = significance.interval(values)
    assert interval.queries == len(values)
    if values:
        assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_a_single_value_says_no_more_than_the_range_of_its_measure() -> None:
    assert significance.interval([0.5], bounds=(0.0, 1.0)) == significance.Interval(0.5, 0.0, 1.0, 1)
    assert math.isinf(significance.interval([0.5]).high)
    gap = significance.difference([0.9], [0.1], bounds=(0.0, 1.0))
    assert (gap.low, gap.high) == (-1.0, 1.0)
    assert not gap.better


def test_the_t_interval_equals_scipy_and_the_outer_one_holds_both() -> None:
    values = np.random.default_rng(9).exponential(size=12)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    interval = significance.interval(values, method="t")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    bca = significance.interval(values, method="bca")
    outer = significance.interval(values)
    assert outer.low == min(interval.low, bca.low)
    assert outer.high == max(interval.high, bca.high)


@pytest.mark.parametrize("queries", [2, 3, 5])
def test_fewer_than_six_queries_are_never_called_better(queries: int) -> None:
    gap = significance.difference(np.full(queries, 0.9) + 0.01 * np.arange(queries), np.zeros(queries))
    assert gap.p > 0.05
    assert not gap.better
    assert not gap.worse


def test_sign_flips_equal_full_enumeration() -> None:
    gaps = np.random.default_rng(6).normal(0.3, 1, size=12)
    sums = [abs(np.dot(signs, gaps)) for signs in itertools.product((-1, 1), repeat=12)]
    exact = np.mean(np.array(sums) >= abs(gaps.sum()) - 1e-12)
    [p] = significance.sign_flip(gaps[:, None], flips=40_000)
    assert p == pytest.approx(exact, abs=0.01)


def test_p_is_one_for_equal_systems_and_never_zero() -> None:
    assert significance.sign_flip(np.zeros((30, 1)), flips=99) == [1.0]
    assert significance.sign_flip(np.ones((30, 1)), flips=99) == [1 / 100]


def test_p_of_equal_systems_is_uniform() -> None:
    gaps = np.random.default_rng(7).normal(size=(60, 1_000))
    p_values = np.array(significance.sign_flip(gaps, flips=500))
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.03 < (p_values <= 0.05).mean() < 0.07


def test_difference_counts_wins_ties_and_losses() -> None:
    difference = significance.difference([0.5, 0.5, 0.9, 0.1 + 1e-12, np.nan], [0.4, 0.6, 0.2, 0.1, 0.3])
    assert (difference.wins, difference.ties, difference.losses, difference.queries) == (2, 1, 1, 4)
    assert difference.mean == pytest.approx(0.175)
    assert difference.low <= difference.mean <= difference.high


def test_the_detectable_difference_is_detected_in_four_of_five_trials() -> None:
    rng = np.random.default_rng(8)
    spread = rng.normal(0, 0.15, size=(500, 400))
    effect = significance.detectable(spread[:, 0])
    assert effect == pytest.approx(0.0188, abs=0.002)
    p = np.array(significance.sign_flip(spread + effect, flips=1_000))
    assert (p <= 0.05).mean() == pytest.approx(0.8, abs=0.07)
    assert significance.detectable([0.1]) == math.inf


def test_holm_on_a_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
    assert significance.holm([]) == []


def test_holm_counts_the_hypotheses_that_a_look_at_the_data_left_out() -> None:
    assert significance.holm([0.001, 0.01], family=10) == pytest.approx([0.01, 0.09])
    assert significance.holm([0.01, 0.04], family=1) == significance.holm([0.01, 0.04])


def test_a_sure_difference_stays_sure_in_a_family_of_thousands() -> None:
    rng = np.random.default_rng(4)
    worse, better = rng.normal(0, 1, (2, 200))
    (p,) = significance.chosen_differences([(better + 1, worse)], family=3_000, flips=100)
    assert p < 0.05
    assert significance.chosen_differences([], family=0) == []
