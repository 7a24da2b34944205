"""Where a camera is, for any reward that can be computed from its pose and nothing else known: policy search over rigid motions.

A policy is a Bingham distribution of rotations and a Gaussian of translations. It begins as all rotations and a box of translations,
becomes the best part of what it tried, and then takes natural steps towards samples of better rank; or, for comparison, is refitted
to the best ones (the cross-entropy method). Only the order of the rewards counts, so that they may be of any scale.

Where a reward can be differentiated, `calibration.estimator` is better and a hundred times cheaper; `sinew bench calibration` prints
both. The search is for what can only be tried: whether odometry agrees, whether a mask fits, whether a grasp succeeds.
Sources: the idea, L2Calib, 2025, arXiv 2508.06330; natural steps and utilities of ranks, Wierstra et al. 2014 and Glasmachers et al.
2010 (natural evolution strategies); Rubinstein 1999 (cross-entropy).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calibration.bingham import PLANES, Bingham, concentrations, moments, most_likely, orthogonal
from sinew.errors import DataError, InputError, unknown
from sinew.se3 import Array, quaternion_multiply, quaternion_to_matrix, se3

Reward = Callable[[Array], Array]
"""Poses (N, 4, 4) to rewards (N,); more is better, and what is not finite is the worst."""
Method = Literal["natural", "cross_entropy"]
METHODS = ("natural", "cross_entropy")
WEAK = 10.0


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How long and how wide is searched."""

    method: Method = "natural"
    reach_m: float = 0.3
    """Translations are first sought in the box of plus and minus this about `centre_m`."""
    centre_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    first: int = 1024
    """Poses tried at the start, over all rotations."""
    first_best: int = 32
    """So many of them make the first policy."""
    population: int = 64
    rounds: int = 80
    """Populations at most."""
    rate: float = 0.5
    """Length of natural steps of the spread, those of the middle have length 1; the cross-entropy method mixes what is new with the
    old policy by it."""
    elite: float = 0.25
    """Part of a population that the cross-entropy method keeps."""
    least_m: float = 2e-5
    """The search ends when the policy is narrower than this in every direction, and than `least_rad`."""
    least_rad: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method of search", self.method, METHODS)
        if not (self.reach_m > 0 and 7 <= self.first_best <= self.first and self.population >= 14 and self.rounds >= 0):
            raise InputError(
                "a search takes a reach above 0 m, at least 7 first best of the first poses, a population of at least 14 and rounds >= 0; "
                f"given {self.reach_m} m, {self.first_best} of {self.first}, {self.population} and {self.rounds}"
            )
        if not (0 < self.rate <= 1 and 0 < self.elite < 1 and self.elite * self.population >= 7):
            raise InputError(f"rate is in (0, 1] and elite keeps at least 7 of a population; given {self.rate} and {self.elite}")


@dataclass(frozen=True)
class Policy:
    """A distribution of poses."""

    rotation: Bingham
    middle: Array
    """Mean of the translations (3,), m."""
    covariance: Array
    """Of the translations (3, 3), m^2."""

    @property
    def pose(self) -> Array:
        """Its middle (4, 4)."""
        return se3(quaternion_to_matrix(self.rotation.mode), self.middle)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Quaternions (count, 4) and translations (count, 3)."""
        return self.rotation.sample(count, rng), self.middle + rng.normal(size=(count, 3)) @ np.linalg.cholesky(self.covariance).T

    def spreads(self) -> tuple[Spread, ...]:
        """In all directions, the widest translation first, then the widest rotation."""
        values, axes = np.linalg.eigh(self.covariance)
        in_camera = self.pose[:3, :3].T @ axes
        rows = [Spread("translation", _axis(in_camera[:, k]), float(np.sqrt(max(values[k], 0.0)))) for k in (2, 1, 0)]
        mean = moments(self.rotation.z)[1]
        inverse = self.rotation.mode * np.array([1.0, -1, -1, -1])
        about = quaternion_multiply(inverse, self.rotation.frame[:, :3].T)[:, 1:]  # the mode turned by little about these is m_k
        rows += [Spread("rotation", _axis(about[k]), float(2 * np.sqrt(mean[k]))) for k in np.argsort(-mean[:3])]
        return tuple(rows)


@dataclass(frozen=True)
class Spread:
    """How wide the policy is in one direction: where it stayed wide, the reward hardly tells."""

    kind: str
    """"translation" or "rotation"."""
    axis: tuple[float, float, float]
    """In the camera's frame."""
    sigma: float
    """Standard deviation, m or rad, of the other kind held still. What counts is how the directions compare: a search that goes on
    narrows them all, and it is no standard error of the result."""


@dataclass(frozen=True)
class SearchResult:
    """What was found."""

    T: Array
    """(4, 4)."""
    reward: float
    policy: Policy
    """The last one."""
    spread: tuple[Spread, ...]
    """Of the last policy: translations and rotations, the weakest direction of each first."""
    evaluations: int
    """Of the reward."""
    history: Array
    """Median reward of each population."""

    @property
    def weak(self) -> tuple[Spread, ...]:
        """Directions that the reward hardly tells: more than `WEAK` times as wide as the narrowest of their kind."""
        least = {kind: min(s.sigma for s in self.spread if s.kind == kind) for kind in ("translation", "rotation")}
        return tuple(s for s in self.spread if s.sigma > WEAK * least[s.kind])


def search(reward: Reward, config: SearchConfig | None = None) -> SearchResult:
    """Look for the pose with the greatest reward, from no first guess.

    Raises:
        InputError: the reward gives something else than one number per pose.
        DataError: no pose has a finite reward.
    """
    config = config or SearchConfig()
    rng = np.random.default_rng(config.seed)
    q = rng.normal(size=(config.first, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    t = np.asarray(config.centre_m) + rng.uniform(-config.reach_m, config.reach_m, (config.first, 3))
    rewards = _evaluate(reward, q, t)
    if not np.isfinite(rewards).any():
        raise DataError(f"none of {config.first} poses has a finite reward: check the reward, and the reach of {config.reach_m} m")
    order = np.argsort(-rewards)[: config.first_best]
    policy, best = _fitted(q[order], t[order]), (float(rewards[order[0]]), _poses(q[order[:1]], t[order[:1]])[0])
    evaluations, history = config.first, []
    step = {"natural": _natural, "cross_entropy": _cross_entropy}[config.method]
    for _ in range(config.rounds):
        q, t = policy.sample(config.population, rng)
        rewards = _evaluate(reward, q, t)
        evaluations += config.population
        top = int(np.argmax(rewards))
        if rewards[top] > best[0]:
            best = float(rewards[top]), _poses(q[top : top + 1], t[top : top + 1])[0]
        history.append(float(np.median(rewards)))
        policy = step(policy, q, t, rewards, config)
        spread = policy.spreads()
        if spread[0].sigma < config.least_m and spread[3].sigma < config.least_rad:
            break
    middle = float(_evaluate(reward, policy.rotation.mode[None], policy.middle[None])[0])
    value, pose = (middle, policy.pose) if middle >= best[0] else best
    return SearchResult(pose, value, policy, policy.spreads(), evaluations + 1, np.array(history))


def _natural(policy: Policy, q: Array, t: Array, rewards: Array, config: SearchConfig) -> Policy:
    """One natural step towards samples of better rank; spreads change by factors, and so never become negative."""
    use = _utilities(rewards)
    root = np.linalg.cholesky(policy.covariance)
    s = np.linalg.solve(root, (t - policy.middle).T).T
    middle = policy.middle + root @ (use @ s)
    factor = _bounded_exp(config.rate * np.einsum("n,ni,nj->ij", use, s, s))
    rotation = policy.rotation
    angles, fisher = use @ rotation.gradient_frame(q), rotation.fisher_frame()
    moves_mode = np.array([j == 3 for _, j in PLANES])
    angles = np.where(moves_mode, angles / np.maximum(fisher, 1e-9), 0.0)
    mean = moments(rotation.z)[1]
    whitened = (q @ rotation.frame)[:, :3] / np.sqrt(mean[:3])
    shape = _bounded_exp(config.rate * np.einsum("n,ni,nj->ij", use, whitened, whitened))
    values, axes = np.linalg.eigh(np.sqrt(mean[:3])[:, None] * shape * np.sqrt(mean[:3]))
    frame = rotation.turned(np.clip(angles, -0.5, 0.5)).frame
    frame = orthogonal(np.column_stack([frame[:, :3] @ axes, frame[:, 3]]))
    values = np.clip(values, 1e-12, 0.33)
    covariance = root @ factor @ root.T
    return Policy(Bingham(frame, concentrations(values)), middle, _sound(covariance))


def _cross_entropy(policy: Policy, q: Array, t: Array, rewards: Array, config: SearchConfig) -> Policy:
    """The policy under which the best part of a population is the most likely, mixed with the one before."""
    order, new = np.argsort(-rewards)[: int(config.elite * len(rewards))], config.rate
    best = _fitted(q[order], t[order])
    moved = best.middle - policy.middle
    covariance = new * best.covariance + (1 - new) * policy.covariance + new * (1 - new) * np.outer(moved, moved)
    scatter = new * _scatter(q[order]) + (1 - new) * policy.rotation.scatter
    return Policy(most_likely(scatter), policy.middle + new * moved, _sound(covariance))


def _fitted(q: Array, t: Array) -> Policy:
    return Policy(most_likely(_scatter(q)), t.mean(0), _sound(np.cov(t.T)))


def _scatter(q: Array) -> Array:
    return q.T @ q / len(q)


def _sound(covariance: Array) -> Array:
    return 0.5 * (covariance + covariance.T) + 1e-16 * np.eye(3)


def _utilities(rewards: Array) -> Array:
    """By rank (N,), their sum 0: above 0 for the better half only, evenly below for the rest (Wierstra et al. 2014)."""
    rank = np.empty(len(rewards))
    rank[np.argsort(-rewards)] = np.arange(1, len(rewards) + 1)
    use = np.maximum(np.log(len(rewards) / 2 + 1) - np.log(rank), 0.0)
    return use / use.sum() - 1 / len(rewards)


def _bounded_exp(matrix: Array) -> Array:
    """Exponential of a symmetric matrix, no factor beyond e."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.exp(np.clip(values, -1.0, 1.0))) @ vectors.T


def _evaluate(reward: Reward, q: Array, t: Array) -> Array:
    rewards = np.asarray(reward(_poses(q, t)), dtype=float)
    if rewards.shape != (len(q),):
        raise InputError(f"a reward gives one number per pose: {len(q)} poses gave an array of shape {rewards.shape}")
    return np.where(np.isfinite(rewards), rewards, -np.inf)


def _poses(q: Array, t: Array) -> Array:
    return se3(quaternion_to_matrix(q), t)


def _axis(v: Array) -> tuple[float, float, float]:
    return float(v[0]), float(v[1]), float(v[2])
