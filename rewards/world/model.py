"""What actions lead to, in a latent space: a model that is conditioned on actions, trained on a dataset, nothing reconstructed.

From a latent and the actions that follow, the latents that will be seen are predicted; their targets come from a copy of the encoder
that follows slowly, and the spread term keeps both from collapsing. A head on the latents learns what episodes come to: the
discounted success that lies ahead.

Sources: action-conditioned prediction in latent space, Assran et al. 2025, arXiv:2506.09985 (V-JEPA 2-AC); outcomes regressed from a
scene and a plan, Jiang et al. 2025, arXiv:2508.06571 (IRL-VLA).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.latent import Encoder, EncoderConfig, follow, follower, load_tensors, restore, save_tensors, spread_loss
from rewards.preference.episodes import Episodes
from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress

KIND = "world"
BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Settings of training."""

    dim: int = 32
    """Length of the latent."""
    hidden: int = 128
    """Width of the encoder and of the step."""
    updates: int = 1500
    """Gradient steps."""
    batch_size: int = 128
    """Windows in a step."""
    horizon: int = 8
    """Actions that are rolled out."""
    gamma: float = 0.97
    """Discount per step of the success that lies ahead."""
    learning_rate: float = 1e-3
    """Of AdamW, falling with a cosine."""
    decay: float = 0.99
    """Share of its own weights that the slow copy keeps."""
    seed: int = 0
    """Of weights and batches."""

    def __post_init__(self) -> None:
        if min(self.dim, self.hidden, self.updates, self.batch_size, self.horizon) < 1 or self.learning_rate <= 0:
            raise InputError("dim, hidden, updates, batch_size and horizon must be at least 1, learning_rate above 0")
        if not 0 < self.gamma < 1 or not 0 <= self.decay <= 1:
            raise InputError(f"gamma {self.gamma} must be between 0 and 1, decay {self.decay} within 0 to 1")


class WorldModel(nn.Module):
    """Observations → latents, latents and actions → later latents, latents → outcome.

    Args:
        encoder: what sees.
        action_dim: elements A of an action, which come in [-1, 1].
        hidden: width of the step.
    """

    def __init__(self, encoder: Encoder, action_dim: int, hidden: int) -> None:
        super().__init__()
        self.encoder, self.action_dim, self.hidden = encoder, action_dim, hidden
        dim = encoder.config.dim
        self.step = nn.Sequential(
            nn.Linear(dim + action_dim, hidden), nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, dim),
        )  # fmt: skip
        for parameter in self.step[-1].parameters():  # at first nothing changes, which short steps are near to
            nn.init.zeros_(parameter)
        self.outcome = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def roll(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Latents (N, L) and actions (N, H, A) in [-1, 1] → latents (N, H, L) after each."""
        made = []
        for action in actions.clamp(-1, 1).unbind(1):
            latents = latents + self.step(torch.cat([latents, action], dim=1))
            made.append(latents)
        return torch.stack(made, dim=1)

    def ahead(self, latents: Tensor) -> Tensor:
        """Latents (..., L) → discounted success that lies ahead (...), in [0, 1]."""
        return torch.sigmoid(self.outcome(latents)[..., 0])

    @torch.no_grad()
    def all(self, seen: Mapping[str, Tensor]) -> Tensor:
        """Latents (F, L) of many frames, a block at a time."""
        count = len(next(iter(seen.values())))
        return torch.cat([self.encoder({k: v[i : i + BLOCK] for k, v in seen.items()}) for i in range(0, count, BLOCK)])


def train(
    episodes: Episodes, actions: Tensor, encoder: EncoderConfig, stats: tuple[Any, Any], config: WorldConfig, progress: Progress = SILENT
) -> WorldModel:
    """A world model of recorded episodes.

    Args:
        episodes: to learn from, successes and failures.
        actions: (F, A) in [-1, 1], of every frame of theirs.
        encoder: what is seen.
        stats: mean and standard deviation of the vectors, `rewards.latent.statistics`.
        config: settings; the same on the same machine give the same weights.
        progress: told every update.

    Raises:
        InputError: no success, or no episode with more frames than the horizon.
        DataError: the loss is not finite.
    """
    starts, left, good = _windows(episodes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = WorldModel(Encoder(encoder, *stats), actions.shape[1], config.hidden)
    target = follower(model.encoder)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.updates)
    stream = np.random.default_rng(config.seed)
    progress.start(KIND, config.updates)
    for _ in range(config.updates):
        pick = stream.integers(len(starts), size=config.batch_size)
        loss = _loss(model, target, episodes, actions, starts[pick], left[pick], good[pick], config)
        if not torch.isfinite(loss):
            raise DataError("the world model's loss is not finite: lower the learning rate, or look at the data")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        follow(target, model.encoder, config.decay)
        progress.advance(1, loss=loss.item())
    return model.eval().requires_grad_(False)


def _windows(episodes: Episodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames from which something is ahead (M,), how many frames are (M,), and whether success is (M,) bool."""
    if not any(episodes.outcome):
        raise InputError("there is no success among the episodes: what they should come to cannot be learned")
    starts = [np.arange(span.start, span.stop - 1) for span in episodes.spans]
    left = [span.stop - 1 - rows for span, rows in zip(episodes.spans, starts, strict=True)]
    good = [np.full(len(rows), success) for success, rows in zip(episodes.outcome, starts, strict=True)]
    joined = np.concatenate(starts)
    if not len(joined):
        raise InputError("there is nothing to learn from: no episode has two frames")
    return joined, np.concatenate(left), np.concatenate(good)


def _loss(
    model: WorldModel, target: nn.Module, episodes: Episodes, actions: Tensor, starts: np.ndarray, left: np.ndarray, good: np.ndarray,
    config: WorldConfig,
) -> Tensor:  # fmt: skip
    """Predicted against seen latents over the steps that there are, the spread, and the outcome seen from now and from later."""
    steps = np.arange(1, config.horizon + 1)
    there = torch.from_numpy((steps[None] <= left[:, None]).astype(np.float32))
    later = starts[:, None] + np.minimum(steps[None], left[:, None])
    latents = model.encoder(episodes.at(starts))
    rolled = model.roll(latents, actions[later - 1])
    with torch.no_grad():
        wanted = target(episodes.at(later.reshape(-1))).reshape(rolled.shape)
    apart = functional.smooth_l1_loss(rolled, wanted, reduction="none").mean(2)
    predicted = (apart * there).sum() / there.sum()
    seen_from = np.concatenate([np.zeros((len(starts), 1)), np.minimum(steps[None], left[:, None])], axis=1)
    value = torch.from_numpy((config.gamma ** (left[:, None] - seen_from) * good[:, None]).astype(np.float32))
    logits = model.outcome(torch.cat([latents[:, None], rolled], dim=1))[..., 0]
    weight = torch.cat([torch.ones(len(starts), 1), there], dim=1)
    ahead = functional.binary_cross_entropy_with_logits(logits, value, weight, reduction="sum") / weight.sum()
    return predicted + spread_loss(latents) + 0.3 * ahead


def prediction_error(model: WorldModel, episodes: Episodes, actions: Tensor, horizon: int) -> dict[str, list[Any]]:
    """How well latents are predicted on episodes that were not learned from, beside the guess that nothing changes.

    Returns:
        {"steps": 1 … H, "predicted", "copied": mean absolute difference per element, "ratio" of them}.
    """
    latents = model.all(episodes.seen)
    sums = np.zeros((2, horizon))
    counts = np.zeros(horizon)
    for span in episodes.spans:
        long = span.stop - span.start
        first = np.arange(span.start, span.stop - 1)
        if not len(first):
            continue
        later = np.minimum(first[:, None] + np.arange(1, horizon + 1)[None], span.stop - 1)
        rolled = model.roll(latents[first], actions[later - 1])
        off = torch.stack([(rolled - latents[later]).abs().mean(2), (latents[first][:, None] - latents[later]).abs().mean(2)]).numpy()
        for k in range(1, min(horizon, long - 1) + 1):
            sums[:, k - 1] += off[:, : long - k, k - 1].sum(1)
            counts[k - 1] += long - k
    there = counts > 0
    mean = sums[:, there] / counts[there]
    return {
        "steps": (np.flatnonzero(there) + 1).tolist(), "predicted": mean[0].tolist(), "copied": mean[1].tolist(),
        "ratio": (mean[0] / np.maximum(mean[1], 1e-12)).tolist(),
    }  # fmt: skip


def save_world(path: Path, model: WorldModel, made: Mapping[str, Any]) -> None:
    """Write a model with what tells how it came about."""
    sizes = {"action_dim": model.action_dim, "hidden": model.hidden}
    save_tensors(path, model.state_dict(), {"kind": KIND, "encoder": to_json(model.encoder.config), **sizes, "made": dict(made)})


def load_world(path: Path) -> WorldModel:
    """The model of a file, for use.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged or holds something else.
    """
    tensors, told = load_tensors(path)
    sizes = [told.get(name) for name in ("action_dim", "hidden")]
    if told.get("kind") != KIND or not all(type(n) is int and 1 <= n <= 4096 for n in sizes):
        raise DataError(f"{path} holds weights of kind {told.get('kind')!r}, not of a world model")
    model = WorldModel(Encoder(from_json(EncoderConfig, told.get("encoder"), str(path))), *sizes)  # type: ignore[arg-type]
    restore(model, tensors, path)
    return model.requires_grad_(False).eval()
