"""The statistics of comparisons against scipy, closed forms, published examples and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from oss_tools.statistics.distributions import Z
from oss_tools.statistics.paired import holm, mcnemar, paired_difference, resampled, tango_interval
from oss_tools.statistics.repeats import estimate, median_interval, paired_ratio, timing


@given(st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_mcnemar_is_the_binomial_tail_twice(gained, lost):
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))


def test_tango_without_differences_is_the_closed_form():
    for n in (10, 60, 1000):
        edge = Z * Z / (n + Z * Z)
        assert tango_interval(0, 0, n) == pytest.approx((-edge, edge), abs=1e-6)


def test_tango_on_a_worked_example():
    """Newcombe 1998 (https://doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C): 12 and 2 of 50."""
    low, high = tango_interval(12, 2, 50)
    assert (low, high) == pytest.approx((0.0611, 0.3447), abs=1e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_tango_holds_the_difference_and_turns_with_it(gained, lost, same):
    n = gained + lost + same
    if not n:
        return
    low, high = tango_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert tango_interval(lost, gained, n) == pytest.approx((-high, -low), abs=1e-6)


def test_tango_covers_the_truth():
    """Simulated: 60 items, 8 % gained and 15 % lost; 95 % of intervals hold −0.07, within what 400 draws can tell."""
    rng = np.random.default_rng(3)
    draws = rng.multinomial(60, [0.08, 0.15, 0.77], size=400)
    inside = sum(low <= -0.07 <= high for low, high in (tango_interval(int(up), int(down), 60) for up, down, _ in draws))
    assert 0.92 <= inside / 400 <= 0.985


def test_holm_on_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_holm_keeps_false_alarms_rare():
    rng = np.random.default_rng(5)
    alarms = sum(min(holm(list(p))) < 0.05 for p in rng.uniform(size=(2000, 12)))
    assert alarms / 2000 < 0.065


@pytest.mark.parametrize(("n", "places"), [(5, None), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (12, (2, 9)), (20, (5, 14))])
def test_median_interval_takes_the_places_of_published_tables(n, places):
    values = list(np.random.default_rng(n).uniform(size=n))
    found = median_interval(values)
    assert found == (None if places is None else tuple(sorted(values)[i] for i in places))


def test_median_interval_covers_the_truth_of_a_skewed_distribution():
    rng = np.random.default_rng(7)
    rows = rng.lognormal(size=(600, 12))
    inside = sum(low <= 1.0 <= high for low, high in (median_interval(list(row)) or (0, 0) for row in rows))
    assert 0.94 <= inside / 600 <= 0.985


def test_the_median_is_numpys():
    found = timing([3.0, 1.0, 2.0, 10.0])
    assert (found.median, found.low, found.high) == (2.5, None, None)
    assert found.values == [3.0, 1.0, 2.0, 10.0]


def test_what_slows_a_whole_round_cancels_out():
    base = [1.0, 5.0, 1.1, 0.9, 3.0, 1.0, 1.0, 2.0]
    ratio = paired_ratio(base, [1.2 * b for b in base])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.2, 1.2, 1.2))
    assert not ratio.noise
    assert paired_ratio(base, base).noise


def test_rights_and_wrongs_are_counted_pairwise():
    found = paired_difference([1, 1, 0, 0, 1, 1.0], [1, 0, 1, 0, 0, 0.0])
    assert (found.gained, found.lost, found.value) == (1, 3, pytest.approx(-2 / 6))
    assert found.p == pytest.approx(stats.binomtest(1, 4).pvalue)


def test_a_copy_does_not_differ():
    outcomes = [1.0, 0.0, 1.0, 1.0, 0.0] * 12
    found = paired_difference(outcomes, outcomes)
    assert (found.value, found.p, found.gained, found.lost) == (0.0, 1.0, 0, 0)
    assert found.low < 0 < found.high


def test_numbers_are_resampled_as_scipy_does():
    rng = np.random.default_rng(11)
    first = rng.normal(size=40)
    second = first + rng.normal(0.4, 0.5, size=40)
    found = paired_difference(list(first), list(second))
    t_test = stats.ttest_rel(second, first)
    low, high = t_test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04)
    assert found.p < 0.01
    assert found == paired_difference(list(first), list(second))


def test_lower_can_be_better():
    found = paired_difference([2.0, 2.0, 2.5], [1.0, 2.0, 2.75], higher_is_better=False)
    assert (found.gained, found.lost) == (1, 1)


def test_equal_changes_have_no_spread():
    assert resampled(np.zeros(5)) == (0.0, 0.0, 1.0)


def test_different_numbers_of_items_are_refused():
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1.0, 0.0], [1.0])


def test_interval_of_a_mean_of_chunks_is_students():
    found = estimate(2.0, 0.5, 5)
    half = 0.5 * stats.t.ppf(0.975, 4)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    shown = estimate(2.0, 0.01, 50, math.exp)
    assert shown.value == pytest.approx(math.exp(2))
    assert shown.stderr == pytest.approx(0.01 * math.exp(2), rel=1e-3)
    assert estimate(2.0, None, 1).low is None
