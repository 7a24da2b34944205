"""How often a policy's features were seen in demonstrations: pseudo-counts from a network that learns coin flips.

Each training sample gets d coin flips of its own, +1 or -1, and a network regresses them from the sample's feature. Where
n samples share a feature, the best answer is the mean of their flips, whose square is 1 / n on average: |f|^2 / d estimates
one over the number of times that a feature was seen. A candidate action with a small value is one that demonstrations know.

Source: Lobel et al. 2023, arXiv:2306.03186 (coin flips); TACO in "Steering Vision-Language-Action Models as
Anti-Exploration", 2025 (on the features of an action head, with the candidate nearest to the demonstrated action as the
sample of each frame). Unlike there, features are brought to unit variance and nothing is dropped out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from policies.base import PolicyModule, require
from policies.batches import instructed
from policies.checkpoint import check_tensors, read_tensors
from policies.language import LANGUAGE
from policies.randomness import generator
from sinew.config import from_json, to_json
from sinew.errors import DataError, SpecError
from sinew.progress import SILENT, Progress
from sinew.protocols import EpisodeData
from sinew.rundir import atomic_write
from sinew.specs import ACTION, TASK

TENSORS_NAME = "counts.safetensors"
_READ_TOGETHER = 64
"""Frames whose candidates are sampled at once."""


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    """Settings of the pseudo-counts."""

    flips: int = 20
    """Coin flips d of a sample."""
    hidden: int = 256
    """Width of the network."""
    blocks: int = 3
    """Residual blocks."""
    candidates: int = 50
    """Chunks sampled for each frame, of which the one nearest to the demonstration gives the feature."""
    epochs: int = 32
    """Passes over the features."""
    batch_size: int = 512
    """Features per update."""
    learning_rate: float = 1e-3
    """Largest step size of Adam, over a one-cycle schedule."""
    seed: int = 0
    """Fixes flips, weights, order and candidates."""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("flips", "hidden", "blocks", "candidates", "epochs", "batch_size")}
        wrong = [name for name, value in sizes.items() if value < 1]
        if wrong or not 0 < self.learning_rate < float("inf"):
            raise SpecError(f"pseudo-counts need {wrong[0] if wrong else 'learning_rate'} above 0")


class _Block(nn.Module):
    """A residual block of width `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CountNetwork(nn.Module):
    """Features to coin flips: a trained network, zero at first, on top of a frozen random one of unit variance.

    The random one makes features that were never seen look new: untrained, |f|^2 / d is about 1.

    Args:
        feature_dim: F.
        config: settings.
    """

    mean: Tensor
    scale: Tensor
    prior_mean: Tensor
    prior_scale: Tensor

    def __init__(self, feature_dim: int, config: CountConfig) -> None:
        super().__init__()
        self.config = config
        width, flips = config.hidden, config.flips
        self.prior = nn.Sequential(nn.Linear(feature_dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, flips))
        self.prior.requires_grad_(False)
        last = nn.Linear(width, flips)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        blocks = [_Block(width) for _ in range(config.blocks)]
        self.trained = nn.Sequential(nn.Linear(feature_dim, width), *blocks, nn.LayerNorm(width), last)
        for name, size in (("mean", feature_dim), ("scale", feature_dim), ("prior_mean", flips), ("prior_scale", flips)):
            self.register_buffer(name, torch.ones(size) if name.endswith("scale") else torch.zeros(size))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, F) → coin flips f (N, d)."""
        x = (features - self.mean) / self.scale
        return self.trained(x) + (self.prior(x) - self.prior_mean) / self.prior_scale

    def novelty(self, features: Tensor) -> Tensor:
        """Features (N, F) → |f|^2 / d (N,), about one over the number of times they were seen."""
        with torch.no_grad():
            return self(features).square().mean(-1)

    def fit(self, features: Tensor, progress: Progress = SILENT) -> float:
        """Learn the coin flips of features (N, F), one sample each.

        Returns:
            Mean squared error at the end.

        Raises:
            DataError: there are none, or one is not finite.
        """
        if features.ndim != 2 or not len(features) or not bool(torch.isfinite(features).all()):
            raise DataError(f"pseudo-counts need finite features, one row per frame; given are {tuple(features.shape)}")
        config, stream = self.config, generator(self.config.seed, 1)
        self._scale(features)
        flips = torch.randint(0, 2, (len(features), config.flips), generator=stream).to(features) * 2 - 1
        rounds = -(-len(features) // config.batch_size)
        optimizer = torch.optim.Adam(self.trained.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.epochs * rounds)
        progress.start("count", config.epochs)
        error = float("nan")
        for _ in range(config.epochs):
            errors = [self._update(features[rows], flips[rows], optimizer, schedule) for rows in self._epoch(len(features), stream)]
            error = float(torch.stack(errors).mean())
            progress.advance(loss=error)
        return error

    def _epoch(self, rows: int, stream: torch.Generator) -> tuple[Tensor, ...]:
        return torch.randperm(rows, generator=stream).split(self.config.batch_size)

    def _update(self, features: Tensor, flips: Tensor, optimizer: torch.optim.Optimizer, schedule: Any) -> Tensor:
        error = (self(features) - flips).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
        return error.detach()

    @torch.no_grad()
    def _scale(self, features: Tensor) -> None:
        """Take the scale of the features, and of the random network's answers to them."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0, correction=0).clamp(min=1e-3))
        answers = self.prior((features - self.mean) / self.scale)
        self.prior_mean.copy_(answers.mean(0))
        self.prior_scale.copy_(answers.std(0, correction=0).clamp(min=1e-6))


def make_counts(feature_dim: int, config: CountConfig) -> CountNetwork:
    """A fresh network; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return CountNetwork(feature_dim, config)


def fit_counts(policy: PolicyModule, data: EpisodeData, config: CountConfig | None = None, progress: Progress = SILENT) -> CountNetwork:
    """Pseudo-counts of a policy's features over its demonstrations, on the policy's device.

    Raises:
        SpecError: the policy gives no features.
        DataError: the dataset is empty, or tells no instructions to a language policy.
    """
    config = config or CountConfig()
    features = demonstrated_features(policy, data, config, progress)
    network = make_counts(policy.spec.feature_dim, config).to(features.device)
    network.fit(features, progress)
    return network.eval()


def demonstrated_features(policy: PolicyModule, data: EpisodeData, config: CountConfig, progress: Progress = SILENT) -> Tensor:
    """For every frame the feature (frames, F) of that of several sampled chunks which is nearest to the demonstrated one.

    The distance is the mean squared difference over the actions within the episode.
    """
    require(policy, "features", "pseudo-counts")
    if len(data) == 0:
        raise DataError("the dataset holds no frames: record or collect episodes first")
    spec, keys = policy.spec, list(policy.spec.observation)
    tasks, task_index = instructed(data) if LANGUAGE in spec.capabilities else ((), None)
    found: list[Tensor] = []
    progress.start("candidates", len(data))
    for first in range(0, len(data), _READ_TOGETHER):
        indices = np.arange(first, min(first + _READ_TOGETHER, len(data)))
        window = data.window(indices, spec.n_obs_steps, spec.horizon, keys)
        obs: dict[str, Any] = {key: torch.from_numpy(np.ascontiguousarray(window[key])).to(policy.device) for key in keys}
        if task_index is not None:
            obs[TASK] = [tasks[i] for i in task_index[indices]]
        action = spec.action.normalize(torch.from_numpy(np.ascontiguousarray(window[ACTION])).float()).to(policy.device)
        inside = torch.from_numpy(~window["action_is_pad"]).to(action)
        found.append(_nearest(policy, obs, action, inside, config.candidates, generator(config.seed, 2, first)))
        progress.advance(len(indices))
    return torch.cat(found)


def _nearest(policy: PolicyModule, obs: Mapping[str, Any], action: Tensor, inside: Tensor, n: int, stream: torch.Generator) -> Tensor:
    """Features (B, F) of the best of n candidates each, for actions (B, H, A) that count where `inside` (B, H) is 1."""
    with torch.no_grad():
        chunk = policy.sample(policy.encode(obs), n=n, features=True, generator=stream)
        distance = ((chunk.actions - action.unsqueeze(1)).square().mean(-1) * inside.unsqueeze(1)).sum(-1)
        if chunk.features is None:
            raise SpecError(f"{type(policy).__name__} gave no features")
        return chunk.features[torch.arange(len(action), device=action.device), distance.argmin(-1)]


def save_counts(network: CountNetwork, folder: Path) -> None:
    """Write counts.safetensors, settings in its header, into a folder."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    metadata = {"sinew_counts": json.dumps({"feature_dim": len(network.mean), **to_json(network.config)})}
    atomic_write(folder / TENSORS_NAME, to_bytes(tensors, metadata))


def load_counts(folder: Path) -> CountNetwork:
    """What `save_counts` wrote.

    Raises:
        DataError: the file is missing, damaged or foreign.
    """
    path = folder / TENSORS_NAME
    tensors, metadata = read_tensors(path)
    try:
        described = json.loads(metadata["sinew_counts"])
        feature_dim = int(described.pop("feature_dim"))
    except (KeyError, ValueError, TypeError):
        raise DataError(f"{path} holds no pseudo-counts: delete it, and they are learned again") from None
    network = make_counts(feature_dim, from_json(CountConfig, described, str(path)))
    check_tensors(tensors, network.state_dict(), str(path))
    network.load_state_dict(tensors)
    return network.eval()
