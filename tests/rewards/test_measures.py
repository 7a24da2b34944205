import math

import numpy as np
import pytest
from scipy import stats

from rewards.inspection import ranking
from rewards.measures import auc, auc_interval, rank_correlation, ranks


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(0, 8, 30)  # with ties
        against = rng.normal(size=30)
        assert rank_correlation(values, against) == pytest.approx(stats.spearmanr(values, against)[0])
        np.testing.assert_allclose(ranks(values), stats.rankdata(values))
    assert rank_correlation([1, 1, 1]) == 0.0
    assert rank_correlation([1, 2, 5]) == pytest.approx(1.0)
    assert rank_correlation([]) == 0.0


def test_auc_is_mann_whitneys():
    rng = np.random.default_rng(1)
    for _ in range(20):
        good, bad = rng.integers(0, 6, 9), rng.integers(0, 6, 7)
        assert auc(good, bad) == pytest.approx(stats.mannwhitneyu(good, bad).statistic / 63)
    assert math.isnan(auc([], [1.0]))


def test_the_interval_of_an_auc_holds_it_and_is_not_a_point_at_one():
    for value in (0.0, 0.3, 0.5, 0.9, 1.0):
        low, high = auc_interval(value, 20, 15)
        assert 0.0 <= low <= value <= high <= 1.0
    assert auc_interval(1.0, 5, 5)[0] < auc_interval(1.0, 50, 50)[0] < 1.0
    assert auc_interval(float("nan"), 5, 0) == (0.0, 1.0)


def test_the_interval_covers_as_it_promises():
    """Normal scores half a standard deviation apart: the true AUC lies within in about 95 of 100 trials."""
    rng, true = np.random.default_rng(0), stats.norm.cdf(0.5 / math.sqrt(2))
    inside = 0
    for _ in range(400):
        low, high = auc_interval(auc(rng.normal(0.5, 1, 25), rng.normal(0, 1, 25)), 25, 25)
        inside += low <= true <= high
    assert inside / 400 > 0.92


def test_too_few_episodes_are_no_verdict_on_how_a_reward_ranks():
    rises, falls = np.array([0.0, 1.0]), np.array([0.0, -1.0])
    assert ranking([rises] * 2 + [falls], [True, True, False]).holds is None, "two against one prove nothing, however they fall"
    assert ranking([rises] * 20 + [falls] * 20, [True] * 20 + [False] * 20).holds is True
    assert ranking([rises, falls, np.zeros(2)], [True, True, False]).holds is None, "nor do they disprove anything"
    assert ranking([falls] * 20 + [rises] * 20, [True] * 20 + [False] * 20).holds is False
