"""Statistics against closed forms, SciPy and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as reference

from sinew import stats
from sinew.errors import InputError

# ---------------------------------------------------------------- the beta distribution


@pytest.mark.parametrize("a", [0.3, 1, 2, 7, 50, 999])
@pytest.mark.parametrize("b", [0.5, 1, 3, 40, 1500])
def test_beta_against_scipy(a: float, b: float) -> None:
    for x in (1e-9, 1e-3, 0.1, a / (a + b), 0.5, 0.9, 1 - 1e-6):
        assert stats.beta_cdf(x, a, b) == pytest.approx(reference.beta.cdf(x, a, b), rel=1e-9, abs=1e-300)
    for p in (1e-6, 0.025, 0.5, 0.975):
        assert stats.beta_quantile(p, a, b) == pytest.approx(reference.beta.ppf(p, a, b), rel=1e-9, abs=1e-12)


def test_beta_closed_forms() -> None:
    assert stats.beta_cdf(0.3, 1, 1) == pytest.approx(0.3)  # uniform
    assert stats.beta_cdf(0.3, 1, 4) == pytest.approx(1 - 0.7**4)
    assert stats.beta_cdf(0.3, 4, 1) == pytest.approx(0.3**4)
    assert stats.beta_cdf(-1, 2, 2) == 0 and stats.beta_cdf(2, 2, 2) == 1
    assert stats.beta_quantile(0, 2, 2) == 0 and stats.beta_quantile(1, 2, 2) == 1


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 20), (50, 100), (97, 100), (1999, 2000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_intervals_against_scipy(k: int, n: int, confidence: float) -> None:
    test = reference.binomtest(k, n)
    for ours, method in ((stats.wilson, "wilson"), (stats.clopper_pearson, "exact")):
        theirs = test.proportion_ci(confidence, method=method)
        assert ours(k, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_interval_closed_forms() -> None:
    # all of n succeed: Clopper-Pearson's lower bound solves p^n = 0.025; Wilson's is n / (n + z^2)
    assert stats.clopper_pearson(20, 20)[0] == pytest.approx(0.025 ** (1 / 20))
    assert stats.wilson(20, 20) == (pytest.approx(20 / (20 + 1.959963984540054**2)), 1.0)
    assert stats.wilson(0, 0) == (0.0, 1.0) and stats.clopper_pearson(0, 0) == (0.0, 1.0)
    # 0 failures in 149 trials are needed to claim less than 2 % failures at one-sided 95 %
    assert stats.clopper_pearson(0, 149, 0.90)[1] < 0.02 < stats.clopper_pearson(0, 148, 0.90)[1]


def coverage(interval: list[tuple[float, float]], n: int, p: float) -> float:
    """Exact probability that the interval, given for each k, holds p."""
    weights = reference.binom.pmf(np.arange(n + 1), n, p)
    return float(sum(w for w, (low, high) in zip(weights, interval, strict=True) if low <= p <= high))


def test_coverage_of_wilson_is_near_and_of_clopper_pearson_above_the_promise() -> None:
    probabilities = np.linspace(0.02, 0.98, 33)
    for n in (20, 100):
        wilson = [coverage([stats.wilson(k, n) for k in range(n + 1)], n, p) for p in probabilities]
        table = [stats.clopper_pearson(k, n) for k in range(n + 1)]
        exact = [coverage(table, n, p) for p in probabilities]
        assert abs(np.mean(wilson) - 0.95) < 0.01 and min(wilson) > 0.83
        assert min(exact) >= 0.95


def test_simulated_coverage_of_wilson() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.05, 0.95, size=4000)
    k = rng.binomial(100, p)
    table = np.array([stats.wilson(i, 100) for i in range(101)])
    covered = np.mean((table[k, 0] <= p) & (p <= table[k, 1]))
    assert covered == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


@pytest.mark.parametrize("interval", [stats.wilson, stats.clopper_pearson])
def test_impossible_counts_are_refused(interval) -> None:
    for arguments in ((5, 4), (-1, 4), (1, 4, 1.5)):
        with pytest.raises(InputError):
            interval(*arguments)


# ---------------------------------------------------------------- paired comparison


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (6, 0), (0, 9), (12, 12), (30, 11), (700, 640), (3000, 10)])
def test_mcnemar_against_the_binomial_test(wins: int, losses: int) -> None:
    expected = reference.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert stats.mcnemar_exact(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert stats.mcnemar_exact(wins, losses) == stats.mcnemar_exact(losses, wins)


def test_mcnemar_by_hand() -> None:
    assert stats.mcnemar_exact(6, 0) == 2 / 64
    assert stats.mcnemar_exact(5, 1) == 2 * (1 + 6) / 64


def test_paired_says_better_only_with_evidence() -> None:
    a = [True] * 6 + [True] * 4
    b = [False] * 6 + [True] * 4
    assert stats.paired(b, a) == {"p": 2 / 64, "wins": 6, "losses": 0, "n": 10, "verdict": "better"}  # before, after
    assert stats.paired(a, b) == {"p": 2 / 64, "wins": 0, "losses": 6, "n": 10, "verdict": "worse"}
    assert stats.paired(b[1:], a[1:])["verdict"] == "no evidence"  # 5 to 0: p = 1/16
    assert stats.paired(a, a) == {"p": 1.0, "wins": 0, "losses": 0, "n": 10, "verdict": "no evidence"}
    assert stats.paired([], [])["verdict"] == "no evidence"


def test_paired_false_alarms_stay_below_alpha() -> None:
    rng = np.random.default_rng(2)
    verdicts = [stats.paired(rng.random(40) < 0.6, rng.random(40) < 0.6)["verdict"] for _ in range(4000)]
    assert np.mean([v != "no evidence" for v in verdicts]) <= 0.05


def test_paired_refuses_what_is_not_paired() -> None:
    with pytest.raises(InputError, match="same seeds"):
        stats.paired([True], [True, False])
    with pytest.raises(InputError, match="outcomes"):
        stats.paired(np.array([0.5]), np.array([1.0]))


# ---------------------------------------------------------------- sequential comparison


def wealth_table(size: int) -> np.ndarray:
    return np.array([[stats.log_wealth(w, x) for x in range(size)] for w in range(size)])


def test_wealth_closed_forms() -> None:
    assert stats.log_wealth(0, 0) == pytest.approx(0)
    # after one win: 2^2 * integral of q from 1/2 to 1 = 4 * 3/8
    assert math.exp(stats.log_wealth(1, 0)) == pytest.approx(1.5)
    assert math.exp(stats.log_wealth(0, 1)) == pytest.approx(0.5)
    # n wins in a row: 2^(n+1) (1 - 2^-(n+1)) / (n + 1)
    assert math.exp(stats.log_wealth(9, 0)) == pytest.approx((2**10 - 1) / 10)
    assert stats.log_wealth(0, 5000) == -math.inf or stats.log_wealth(0, 5000) < -1


def test_wealth_is_a_martingale_when_a_win_is_a_coin_toss() -> None:
    table = np.exp(wealth_table(31))
    np.testing.assert_allclose((table[1:, :-1] + table[:-1, 1:]) / 2, table[:-1, :-1], rtol=1e-10)


def simulate(streams: int, length: int, win: float, alpha: float, seed: int) -> tuple[float, float]:
    """Share of streams of discordant pairs that are ever called better, and worse, if one stops at the first verdict."""
    outcomes = np.random.default_rng(seed).random((streams, length)) < win
    wins = np.cumsum(outcomes, 1)
    losses = np.arange(1, length + 1) - wins
    table, needed = wealth_table(length + 1), math.log(2 / alpha)
    first_for = np.where((table[wins, losses] >= needed).any(1), (table[wins, losses] >= needed).argmax(1), length)
    first_against = np.where((table[losses, wins] >= needed).any(1), (table[losses, wins] >= needed).argmax(1), length)
    return float(np.mean(first_for < first_against)), float(np.mean(first_against < first_for))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_optional_stopping_keeps_the_error_below_alpha(alpha: float) -> None:
    better, worse = simulate(streams=20_000, length=200, win=0.5, alpha=alpha, seed=3)
    assert better + worse <= alpha
    assert better + worse >= alpha / 10  # valid, and not by never speaking


def test_a_fixed_sample_test_looked_at_after_every_pair_breaks_its_promise() -> None:
    """The reason for the sequential test: McNemar at every look calls a difference far too often."""
    outcomes = np.random.default_rng(4).random((1000, 100)) < 0.5
    wins = np.cumsum(outcomes, 1)
    p = np.array([[stats.mcnemar_exact(w, n - w) if w <= n else 1.0 for w in range(101)] for n in range(101)])
    assert np.mean((p[np.arange(1, 101), wins] <= 0.05).any(1)) > 0.15


def test_power_against_a_real_difference() -> None:
    better, worse = simulate(streams=4000, length=60, win=0.85, alpha=0.05, seed=5)
    assert better > 0.95 and worse < 0.001


def test_object_and_table_agree_and_the_verdict_stands() -> None:
    comparison = stats.SequentialComparison()
    verdicts = [comparison.update(before=False, after=True) for _ in range(12)]
    # 2^(n+1) - 1 over n + 1 first passes 2/0.05 = 40 at n = 8: 511 / 9 = 56.8
    assert verdicts == ["no evidence"] * 7 + ["better"] * 5
    for _ in range(40):
        assert comparison.update(before=True, after=False) == "better"
    assert comparison.report()["n"] == 52 and comparison.losses == 40
    assert stats.SequentialComparison().report() == {"p": 1.0, "wins": 0, "losses": 0, "n": 0, "verdict": "no evidence"}


def test_concordant_pairs_change_nothing() -> None:
    comparison = stats.SequentialComparison()
    for outcome in (True, False) * 50:
        comparison.update(outcome, outcome)
    assert comparison.p == 1.0 and comparison.pairs == 100 and comparison.verdict == "no evidence"


def test_sequential_can_say_worse() -> None:
    comparison = stats.SequentialComparison()
    assert [comparison.update(before=True, after=False) for _ in range(8)][-1] == "worse"
    with pytest.raises(InputError):
        stats.SequentialComparison(alpha=0)


# ---------------------------------------------------------------- IQM and bootstrap


@pytest.mark.parametrize("n", [1, 3, 4, 7, 8, 100])
def test_iqm_against_the_trimmed_mean(n: int) -> None:
    scores = np.random.default_rng(n).normal(size=n)
    assert stats.iqm(scores) == pytest.approx(reference.trim_mean(scores, 0.25))


def test_iqm_ignores_the_outer_quarters() -> None:
    assert stats.iqm([0, 1, 1, 1, 1, 1, 1, 1e9]) == 1
    assert stats.iqm([[0, 1, 1, 1], [1, 1, 1, -5]]) == 1
    with pytest.raises(InputError):
        stats.iqm([])
    with pytest.raises(InputError):
        stats.iqm([1.0, math.nan])


def test_bootstrap_is_stratified_and_repeatable() -> None:
    # runs differ nowhere within a task: drawing within tasks gives no spread at all, drawing across would
    scores = np.tile([0.0, 0.5, 1.0, 0.25], (5, 1))
    assert stats.bootstrap_interval(scores) == (stats.iqm(scores), stats.iqm(scores))
    noisy = np.random.default_rng(0).normal(size=(10, 3))
    assert stats.bootstrap_interval(noisy, seed=7) == stats.bootstrap_interval(noisy, seed=7)
    with pytest.raises(InputError):
        stats.bootstrap_interval(np.zeros((0, 3)))


def test_bootstrap_coverage_of_the_mean() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for trial in range(300):
        low, high = stats.bootstrap_interval(rng.normal(size=(40, 2)), lambda s: float(s.mean()), resamples=300, seed=trial)
        covered += low <= 0 <= high
    assert 0.89 <= covered / 300 <= 0.985


# ---------------------------------------------------------------- summary


def test_success_summary() -> None:
    summary = stats.success_summary(np.array([True, False, True]), [7, 8, 9])
    assert summary == {"k": 2, "n": 3, "wilson95": list(stats.wilson(2, 3)), "seeds": [7, 8, 9]}
    with pytest.raises(InputError, match="2 outcomes given for 1 seeds"):
        stats.success_summary([True, True], [1])
    with pytest.raises(InputError, match="seed 4 occurs more than once"):
        stats.success_summary([True, True], [4, 4])
