"""Success rates with honest intervals, and comparisons that say "better" only with evidence. NumPy and math only.

Sources: Wilson 1927; Clopper and Pearson 1934; McNemar 1947 with the exact binomial tail; Ville 1939, Robbins 1970 and
Waudby-Smith and Ramdas 2024 (JRSS B 86, arXiv 2010.09686) for tests by betting; Agarwal et al. 2021, arXiv 2108.13264,
for the interquartile mean with a stratified bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sinew.errors import InputError

BETTER, WORSE, NO_EVIDENCE = "better", "worse", "no evidence"


# ---------------------------------------------------------------- one success rate


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a success probability after k successes in n trials; (0, 1) for n = 0.

    Args:
        k: successes, 0 to n.
        n: trials.
        confidence: coverage aimed at, on average over probabilities.

    Returns:
        Lower and upper bound.
    """
    _check_counts(k, n, confidence)
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return (0.0 if k == 0 else max(0.0, centre - half)), (1.0 if k == n else min(1.0, centre + half))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a success probability: covers at least `confidence` at every probability; for safety claims."""
    _check_counts(k, n, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else beta_quantile(tail, k, n - k + 1)
    high = 1.0 if k == n else beta_quantile(1 - tail, k + 1, n - k)
    return low, high


def success_summary(successes: Sequence[bool] | np.ndarray, seeds: Sequence[int]) -> dict[str, Any]:
    """How every success rate is reported.

    Args:
        successes: one outcome for each seed.
        seeds: the seeds of the episodes, in the same order.

    Returns:
        {"k": successes, "n": episodes, "wilson95": [low, high], "seeds": [...]}.

    Raises:
        InputError: the lengths differ, or a seed occurs twice.
    """
    outcome, seeds = _outcomes(successes), [int(s) for s in seeds]
    if len(outcome) != len(seeds):
        raise InputError(f"{len(outcome)} outcomes given for {len(seeds)} seeds; give one each")
    if len(set(seeds)) != len(seeds):
        twice = next(s for s in seeds if seeds.count(s) > 1)
        raise InputError(f"seed {twice} occurs more than once; repeated episodes are not independent evidence")
    k, n = int(outcome.sum()), len(outcome)
    return {"k": k, "n": n, "wilson95": list(wilson(k, n)), "seeds": seeds}


# ---------------------------------------------------------------- two policies on the same seeds


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact p-value for "a discordant pair is a win or a loss with equal probability".

    Args:
        wins: pairs in which only the one that is asked about succeeded.
        losses: pairs in which only the other succeeded.

    Returns:
        Probability of a split at least this uneven; 1.0 without discordant pairs.
    """
    if wins < 0 or losses < 0:
        raise InputError(f"wins and losses are counts, got {wins} and {losses}")
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired(before: Sequence[bool] | np.ndarray, after: Sequence[bool] | np.ndarray, alpha: float = 0.05) -> dict[str, Any]:
    """Is `after` better than `before` on the same seeds? For a number of pairs that was fixed beforehand.

    Args:
        before: outcomes of the policy that is compared with.
        after: outcomes of the policy that is asked about, on the same seeds in the same order.
        alpha: largest probability of saying better or worse where both are alike.

    Returns:
        {"p", "wins" (only `after` succeeded), "losses" (only `before` succeeded), "n" (pairs),
        "verdict" on `after`: "better", "worse" or "no evidence"}.
    """
    first, second = _outcomes(before), _outcomes(after)
    if len(first) != len(second):
        raise InputError(f"{len(first)} outcomes against {len(second)}; pairs need the same seeds on both sides")
    wins, losses = int(np.sum(second & ~first)), int(np.sum(~second & first))
    p = mcnemar_exact(wins, losses)
    verdict = NO_EVIDENCE if p > alpha else BETTER if wins > losses else WORSE
    return {"p": p, "wins": wins, "losses": losses, "n": len(first), "verdict": verdict}


class SequentialComparison:
    """Compares two policies pair by pair and may be asked after every pair: looking early never costs validity.

    On each discordant pair one gambler bets that the new policy wins it, another that the old one does.
    If a win has probability 1/2 at most, the first gambler's wealth is a non-negative supermartingale that starts at 1, so it
    ever reaches 2/alpha with probability alpha/2 at most (Ville's inequality), whatever rule stops the experiment. The
    bets are those of a mixture over the win probability q, uniform on (1/2, 1), for which the wealth after w wins
    and l losses has the closed form 2^(w + l + 1) * integral from 1/2 to 1 of q^w (1 - q)^l dq. Concordant pairs move
    nothing. Pairs may differ in difficulty; each needs only P(win | discordant, the past) <= 1/2 under the null.

    Args:
        alpha: bound on the probability of ever calling a difference between two that are alike.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        if not 0 < alpha < 1:
            raise InputError(f"alpha is a probability between 0 and 1, got {alpha}")
        self.alpha = alpha
        self.pairs = self.wins = self.losses = 0
        self._best_for, self._best_against = 0.0, 0.0

    def update(self, before: bool, after: bool) -> str:
        """Take in one pair of outcomes and return the verdict on `after`, which stands once it is given."""
        known = self.verdict
        self.pairs += 1
        self.wins += bool(after) and not before
        self.losses += bool(before) and not after
        if known == NO_EVIDENCE:
            self._best_for = max(self._best_for, log_wealth(self.wins, self.losses))
            self._best_against = max(self._best_against, log_wealth(self.losses, self.wins))
        return self.verdict

    @property
    def verdict(self) -> str:
        """What is known so far about the new policy: "better", "worse" or "no evidence"."""
        needed = math.log(2 / self.alpha)
        if max(self._best_for, self._best_against) < needed:
            return NO_EVIDENCE
        return BETTER if self._best_for > self._best_against else WORSE

    @property
    def p(self) -> float:
        """Anytime-valid two-sided p-value: 2 / (largest wealth of either gambler), at most 1."""
        return min(1.0, 2 * math.exp(-max(self._best_for, self._best_against)))

    def report(self) -> dict[str, Any]:
        """{"p", "wins", "losses", "n", "verdict"}, as `paired` gives it."""
        return {"p": self.p, "wins": self.wins, "losses": self.losses, "n": self.pairs, "verdict": self.verdict}


def log_wealth(wins: int, losses: int) -> float:
    """Natural logarithm of the wealth of a gambler who bets on wins; see `SequentialComparison`."""
    share = beta_cdf(0.5, losses + 1, wins + 1)  # posterior mass of q above 1/2
    if share == 0:
        return -math.inf
    return (wins + losses + 1) * math.log(2) + _log_beta(wins + 1, losses + 1) + math.log(share)


# ---------------------------------------------------------------- scores over training seeds


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean of the middle half, after cutting floor(n / 4) scores at either end."""
    flat = np.sort(np.asarray(scores, dtype=float).reshape(-1))
    if not len(flat) or not np.all(np.isfinite(flat)):
        raise InputError(f"the interquartile mean needs finite scores, got {len(flat)} of which {int(np.sum(~np.isfinite(flat)))} are not")
    cut = len(flat) // 4
    return float(flat[cut : len(flat) - cut].mean())


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[np.ndarray], float] = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval, stratified: training runs are drawn again within each task, never across tasks.

    Args:
        scores: (runs, tasks) or (runs,) final scores.
        statistic: function of an array like `scores`.
        confidence: coverage aimed at.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        Lower and upper bound.
    """
    table = np.asarray(scores, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size:
        raise InputError(f"scores are (runs, tasks), got an array of shape {table.shape}")
    rng = np.random.default_rng(seed)
    runs, tasks = table.shape
    values = [statistic(table[rng.integers(runs, size=(runs, tasks)), np.arange(tasks)]) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------- the beta distribution


def beta_cdf(x: float, a: float, b: float) -> float:
    """P(X <= x) for X ~ Beta(a, b): the regularised incomplete beta function, relative error about 1e-13.

    Source: continued fraction DLMF 8.17.22, evaluated by Lentz's method.
    """
    if not (a > 0 and b > 0):
        raise InputError(f"a beta distribution needs positive parameters, got {a} and {b}")
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    return front * _beta_fraction(x, a, b)


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with P(X <= x) = p for X ~ Beta(a, b), by bisection until two floats meet."""
    if not 0 <= p <= 1:
        raise InputError(f"a quantile is taken at a probability from 0 to 1, got {p}")
    if p in (0, 1):
        return float(p)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if beta_cdf(middle, a, b) < p else (low, middle)
    return high


def _beta_fraction(x: float, a: float, b: float) -> float:
    def away_from_zero(y: float) -> float:
        return y if abs(y) > 1e-300 else 1e-300

    c, d = 1.0, 1 / away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            c, d = away_from_zero(1 + term / c), 1 / away_from_zero(1 + term * d)
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            return value
    raise ArithmeticError(f"the incomplete beta fraction did not converge at x={x}, a={a}, b={b}")


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _outcomes(values: Sequence[bool] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.all((array == 0) | (array == 1))):
        raise InputError(f"outcomes are a list of successes (true or false), got an array of shape {array.shape} and type {array.dtype}")
    return array.astype(bool)


def _check_counts(k: int, n: int, confidence: float) -> None:
    if not 0 <= k <= n:
        raise InputError(f"{k} successes in {n} trials cannot be; successes are 0 to the number of trials")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is a probability between 0 and 1, got {confidence}")
