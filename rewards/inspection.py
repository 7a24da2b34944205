"""What recorded episodes tell of a reward: whether it knows success from failure, grows on the way, and can be had without the task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewards.guard import chi_square_between
from rewards.measures import auc, auc_interval, rank_correlation
from rewards.replay import play
from rewards.shaping import ShapedByHistory
from sinew.errors import InputError
from sinew.protocols import EpisodeData, Reward

GAMMA = 0.99
"""Discount of the returns that are compared."""
LEAST_AUC, LEAST_CORRELATION = 0.9, 0.8
"""Below these a reward does not rank, or does not grow."""
LOOP = 0.02
"""A round trip may pay this share of the way's own worth, for rounding."""
LOOPED = 8
"""Episodes that are walked there and back."""
FEW = 20
"""Steps of failures from which on it is asked where they are."""
BY_HISTORY = "it pays differences of a potential: what going back and forth earns is taken back again"
FAR = 10.0
"""χ² above which steps of failures are not where demonstrations go."""


@dataclass(frozen=True)
class Episode:
    """A recorded episode."""

    index: int
    frames: np.ndarray
    """(T,) global indices."""
    success: bool


@dataclass(frozen=True)
class Finding:
    """One verdict."""

    name: str
    holds: bool | None
    """None where it cannot be told, or does not matter."""
    text: str
    value: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    episodes: tuple[Episode, ...]
    curves: tuple[np.ndarray, ...]
    """(T_i,) for each episode: what it has been paid so far where a round trip pays nothing, else what the step itself pays."""
    sums: bool
    """Whether curves are sums."""
    returns: np.ndarray
    """(E,) discounted, success included."""
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Verdicts that do not hold."""
        return tuple(f for f in self.findings if f.holds is False)


def inspect(data: EpisodeData, episodes: Sequence[Episode], build: Callable[[int, float], Reward], states: Sequence[str]) -> Inspection:
    """Play recorded episodes through a reward that is not told how they end, then once more told.

    Args:
        data: the dataset.
        episodes: of two frames or more.
        build: (worlds, discount) → the reward.
        states: observation vectors by which it is told where demonstrations went; none to leave that out.

    Raises:
        RewardUnavailable: the reward cannot be had for this data.
        InputError: no episode succeeded, or the reward is not finite.
    """
    outcome = [e.success for e in episodes]
    if not any(outcome):
        raise InputError(f"none of the {len(episodes)} episodes is a success: there is nothing to hold a reward against; record some")
    paths = [e.frames for e in episodes]
    gamma = 1.0  # at which differences of potentials sum up to nothing but their ends
    reward = build(len(paths), gamma)
    remembers = isinstance(reward, ShapedByHistory)  # it telescopes, though a place may be worth something else the second time
    paid = play(data, paths, reward)
    if not any(p.any() for p in paid):  # a reward that is scaled by 1 − γ pays nothing there
        gamma = GAMMA
        paid = play(data, paths, build(len(paths), gamma))
    worth = max(float(np.ptp(np.concatenate(([0.0], np.cumsum(p))))) for p in paid)
    told = play(data, paths, build(len(paths), GAMMA), won=outcome)
    returns = np.array([float((p * GAMMA ** np.arange(len(p))).sum()) for p in told])
    if worth == 0.0:
        text = "success alone is rewarded: nothing tells the way there, and nothing can be had without it"
        return Inspection(tuple(episodes), tuple(np.zeros(len(p)) for p in paths), True, returns, (Finding("dense", None, text),))
    at_end = all(bool((p[:-1] == 0.0).all()) for p in paid)
    loop = 0.0 if at_end or remembers else round_trip(data, paths, lambda worlds: build(worlds, gamma))
    sums = abs(loop) <= LOOP * worth
    curves = [np.concatenate(([0.0], np.cumsum(p))) if sums else np.concatenate((p[:1], p)) for p in paid]
    on_the_way = Finding("growth", None, "it pays at the end of an episode alone: nothing tells the way there")
    findings = [ranking(curves, outcome), on_the_way if at_end else growth(curves, outcome), failing(returns, outcome)]
    if not at_end:
        findings.append(Finding("loops", True, BY_HISTORY) if remembers else loops(loop, worth))
        findings += [elsewhere(data, episodes, curves, states, paid_again=loop > LOOP * worth)] if states else []
    return Inspection(tuple(episodes), tuple(curves), sums, returns, tuple(findings))


def round_trip(data: EpisodeData, paths: Sequence[np.ndarray], build: Callable[[int], Reward]) -> float:
    """What the second walk along an episode and back pays at most: nothing, for a difference of potentials at a discount of 1.

    The second, since a reward that remembers how far an episode came pays for the way once.
    """
    walked = sorted(paths, key=len)[:LOOPED]
    there_and_back = [np.concatenate((p, p[-2::-1], p[1:], p[-2::-1])) for p in walked]
    paid = play(data, there_and_back, build(len(walked)))
    return max((float(p[2 * (len(w) - 1) :].sum()) for p, w in zip(paid, walked, strict=True)), key=abs)


def ranking(curves: Sequence[np.ndarray], outcome: Sequence[bool]) -> Finding:
    """Whether successes end higher than failures."""
    good, bad = _ends(curves, outcome, True), _ends(curves, outcome, False)
    if not bad:
        return Finding("ranking", None, "no failure among the episodes: whether it tells them from successes is not known")
    value = auc(good, bad)
    low, high = auc_interval(value, len(good), len(bad))
    too_few = low <= 0.5 if value >= LEAST_AUC else high >= LEAST_AUC
    holds = None if too_few else value >= LEAST_AUC
    told = f"a success ends higher than a failure in {value:.1%} of pairs ({low:.0%} to {high:.0%}; {len(good)} and {len(bad)} episodes)"
    return Finding("ranking", holds, f"{told}{'; more episodes would tell' if too_few else ''}", value)


def growth(curves: Sequence[np.ndarray], outcome: Sequence[bool]) -> Finding:
    """Whether it grows with time along successes."""
    value = float(np.mean([rank_correlation(c) for c, ok in zip(curves, outcome, strict=True) if ok]))
    return Finding("growth", value >= LEAST_CORRELATION, f"along successes it goes with time: rank correlation {value:.3f}", value)


def loops(loop: float, worth: float) -> Finding:
    """Whether something can be had for going back and forth."""
    share = loop / worth
    if share > LOOP:
        text = f"going there and back pays {share:.2f} of the whole way, again and again: it can be collected without doing the task"
    elif share < -LOOP:
        text = f"going there and back costs {-share:.2f} of the whole way"
    else:
        text = "going there and back pays nothing"
    return Finding("loops", share <= LOOP, text, share)


def failing(returns: np.ndarray, outcome: Sequence[bool]) -> Finding:
    """Whether a failure can earn as much as a success."""
    won = np.array(outcome)
    usual = float(np.median(returns[won]))
    if won.all():
        return Finding("failing", None, f"a success earns {usual:.2f}; no failure to compare with")
    best = float(returns[~won].max())
    text = f"the best failure earns {best:.2f}, a success usually {usual:.2f} (discounted by {GAMMA})"
    return Finding("failing", best < usual, text if best < usual else f"{text}: failing pays", best / usual if usual else None)


def elsewhere(
    data: EpisodeData, episodes: Sequence[Episode], curves: Sequence[np.ndarray], states: Sequence[str], paid_again: bool
) -> Finding:
    """Whether failures are valued highly where no success has been; a problem where such a value can be collected again and again."""
    good = [c for c, e in zip(curves, episodes, strict=True) if e.success]
    half = float(np.median([c[0] + (c[-1] - c[0]) / 2 for c in good]))
    high = [e.frames[c > half] for c, e in zip(curves, episodes, strict=True) if not e.success]
    rows = np.concatenate(high) if high else np.zeros(0, np.int64)
    if len(rows) < FEW:
        return Finding("elsewhere", True if high else None, f"{len(rows)} steps of failures are valued like the second half of a success")
    known = np.concatenate([e.frames for e in episodes if e.success])
    found = chi_square_between(_states(data, rows, states), _states(data, known, states))
    where = "where no success goes" if found > FAR else "among states of successes"
    text = f"{len(rows)} steps of failures are valued like the second half of a success, {where} (χ² {found:.0f})"
    if found > FAR and not paid_again:
        text += "; since round trips pay nothing, this can slow learning down and not lead it astray"
    return Finding("elsewhere", None if found > FAR and not paid_again else found <= FAR, text, found)


def _states(data: EpisodeData, rows: np.ndarray, keys: Sequence[str]) -> torch.Tensor:
    window = data.window(rows, 1, 1, tuple(keys))
    return torch.cat([torch.from_numpy(np.array(window[k][:, 0])).flatten(1).float() for k in keys], 1)


def _ends(curves: Sequence[np.ndarray], outcome: Sequence[bool], which: bool) -> list[float]:
    """Where curves end: the mean over their last tenth."""
    return [float(c[-math.ceil(len(c) / 10) :].mean()) for c, ok in zip(curves, outcome, strict=True) if ok == which]
