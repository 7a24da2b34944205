"""How many steps to success: a distribution over returns, learned from whole episodes, and the advantage of each step.

A success that is k steps away counts -k / failure_steps, a failure -1, so that values lie in [-1, 0]. The ensemble's heads are folds:
each learns from the episodes of the others and judges its own, so that no episode's outcome is known by heart where it is judged.

Source: pi*0.6, arXiv:2511.14759 (categorical value of steps to success); folds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rl.critic import EnsembleMLP
from rl.engine import make_engine
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """Settings of the value distribution."""

    bins: int = 51
    """Returns from -1 to 0 that are told apart."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the networks."""
    folds: int = 4
    """Networks; each judges the episodes that it did not learn from. 1 learns from what it judges."""
    updates: int = 1_000
    """Adam steps."""
    batch_size: int = 256
    """Frames per step."""
    learning_rate: float = 3e-4
    """Adam step size at the start; falls to zero along a line."""
    weight_decay: float = 1e-2
    """Decoupled decay of the weights."""
    failure_steps: int | None = None
    """Steps that a failure counts as; None for twice the longest episode."""

    def __post_init__(self) -> None:
        if self.bins < 2 or min(self.folds, self.updates, self.batch_size) < 1 or (self.failure_steps or 1) < 1:
            raise InputError(f"value bins {self.bins} must be at least 2, and folds, updates, batch_size and failure_steps at least 1")


@dataclass(frozen=True)
class Experience:
    """Recorded episodes, frame after frame."""

    features: Tensor
    """(F, D) float32 what the policy sees in each frame."""
    lengths: np.ndarray
    """(E,) frames of each episode, in order; their sum is F."""
    success: np.ndarray
    """(E,) bool, whether its last step reached the goal."""
    task: np.ndarray
    """(F,) int64, which instruction each frame follows."""
    human: np.ndarray
    """(F,) bool, whether a human who intervened chose the action."""

    def __post_init__(self) -> None:
        frames = int(self.lengths.sum())
        if not len(self.lengths) or self.lengths.min() < 1 or {len(self.features), len(self.task), len(self.human)} != {frames}:
            raise DataError(f"{len(self.lengths)} episodes of {frames} frames do not fit {len(self.features)} features")

    @property
    def episode(self) -> np.ndarray:
        """(F,) which episode each frame belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def left(self) -> np.ndarray:
        """(F,) steps to the episode's end, this one included."""
        return np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(self.task))

    def scale(self, config: ValueConfig) -> int:
        """Steps that a failure counts as.

        Raises:
            InputError: they are fewer than those of a success.
        """
        steps = config.failure_steps or 2 * int(self.lengths.max())
        if self.success.any() and steps <= self.lengths[self.success].max():
            longest = self.lengths[self.success].max()
            raise InputError(f"failure_steps is {steps}, and there is a success of {longest} steps; a failure must count more")
        return steps


def returns(experience: Experience, failure_steps: int) -> Tensor:
    """What came of every frame, (F,) float32 in [-1, 0]."""
    value = np.where(experience.success[experience.episode], -experience.left / failure_steps, -1.0)
    return torch.from_numpy(value.astype(np.float32))


class ValueDistribution(nn.Module):
    """Features → a distribution over returns, one per fold.

    Args:
        in_dim: D.
        config: settings.
        generator: of the initial weights.
    """

    centres: Tensor

    def __init__(self, in_dim: int, config: ValueConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.net = EnsembleMLP(in_dim, config.hidden, config.bins, config.folds, generator=generator)
        self.register_buffer("centres", torch.linspace(-1, 0, config.bins))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) → probabilities (folds, B, bins)."""
        return self.net(features).softmax(-1)

    def value(self, features: Tensor, fold: Tensor | None = None) -> Tensor:
        """Expected returns (B,): of network `fold` (B,) for each row, or of all on average."""
        with torch.no_grad():
            expected = torch.cat([(self(part) * self.centres).sum(-1) for part in features.split(4096)], dim=1)
        return expected.mean(0) if fold is None else expected.gather(0, fold[None])[0]

    def two_hot(self, value: Tensor) -> Tensor:
        """Returns (B,) → distributions (B, bins) on the two nearest bins whose mean they are."""
        place = (value.clamp(-1, 0) + 1) * (len(self.centres) - 1)
        low = place.floor().clamp(max=len(self.centres) - 2)
        share = (place - low)[:, None]
        low = low.long()[:, None]
        empty = value.new_zeros(len(value), len(self.centres))
        return empty.scatter(1, low, 1 - share).scatter_add(1, low + 1, share)


def fit_value(experience: Experience, config: ValueConfig, seed: int = 0, progress: Progress = SILENT) -> tuple[ValueDistribution, Tensor]:
    """A value distribution of what was experienced, and the value (F,) of every frame by a network that has not seen its episode."""
    generator = torch.Generator().manual_seed(seed)
    features, target = experience.features, returns(experience, experience.scale(config))
    made = ValueDistribution(features.shape[1], config, generator).to(features.device)
    # episodes are dealt out to the folds, successes and failures apart, so that each fold judges some of both
    order = torch.randperm(len(experience.lengths), generator=generator).numpy()
    order = np.concatenate([order[experience.success[order]], order[~experience.success[order]]])
    fold_of = np.empty(len(order), np.int64)
    fold_of[order] = np.arange(len(order)) % config.folds
    fold = torch.from_numpy(fold_of[experience.episode])
    engine = make_engine(made.net)
    optimizer = torch.optim.AdamW(made.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    progress.start("value", config.updates)
    for update in range(config.updates):
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - update / config.updates)
        rows = torch.randint(len(target), (config.batch_size,), generator=generator)
        learns = (fold[rows][None] != torch.arange(config.folds)[:, None]) if config.folds > 1 else torch.ones(1, len(rows))
        with torch.no_grad():
            wanted = made.two_hot(target[rows].to(features.device))
            error = (engine.forward(features[rows]).softmax(-1) - wanted) * learns.to(features)[:, :, None]
        engine.backward(error / len(rows), parameters=True, inputs=False)
        optimizer.step()
        progress.advance(1)
    return made, made.value(features, fold.to(features.device))


def advantages(experience: Experience, value: Tensor, lookahead: int, failure_steps: int) -> Tensor:
    """How much better each step went than was expected, (F,): return of the next `lookahead` steps, and value after them, less the value.

    Args:
        experience: episodes.
        value: (F,) expected returns.
        lookahead: steps; where the episode ends before, its outcome counts.
        failure_steps: as the value was learned with.
    """
    left = torch.from_numpy(experience.left)
    inside = left > lookahead
    after = (torch.arange(len(left)) + lookahead).clamp(max=len(left) - 1)
    bootstrapped = value[after] - lookahead / failure_steps
    return torch.where(inside, bootstrapped, returns(experience, failure_steps)) - value


def labels(experience: Experience, advantage: Tensor, share: float) -> np.ndarray:
    """(F,) bool: the best `share` of each task's steps, and whatever a human did who intervened."""
    good = np.zeros(len(advantage), bool)
    values = advantage.numpy()
    for task in np.unique(experience.task):
        mine = experience.task == task
        good[mine] = values[mine] > np.quantile(values[mine], 1 - share)
    return good | experience.human
