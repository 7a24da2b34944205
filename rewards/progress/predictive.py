"""Trains the encoder of `rewards.latent` on recorded episodes alone: it predicts, in its own space, what will be seen a little later.

Sources: Assran et al. 2025, arXiv:2506.09985 (prediction of later frames in latent space, targets of a slow copy); the spread term
of `rewards.latent` keeps it from predicting one point forever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.latent import PICTURE_SIZE, Encoder, EncoderConfig, follow, follower, spread_loss, statistics
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import EpisodeData

LEAST_RANK = 1.5
"""Latents that spread over fewer directions than this (see `effective_rank`) tell nothing."""
LEAST_SPREAD = 0.05
"""Nor do those whose elements vary less than this."""
BLOCK = 512
"""Frames that are read or encoded at a time."""


@dataclass(frozen=True, kw_only=True)
class PredictiveConfig:
    """Settings of training."""

    dim: int = 32
    """Length of the latent."""
    hidden: int = 128
    """Width of encoder and predictor."""
    updates: int = 1000
    """Gradient steps."""
    batch_size: int = 256
    """Pairs of frames in a step."""
    horizon: int = 10
    """Largest number of frames between what is seen and what is predicted."""
    learning_rate: float = 1e-3
    """Of Adam."""
    spread: float = 1.0
    """Weight of the spread term."""
    decay: float = 0.99
    """Share of its own weights that the slow copy keeps."""
    seed: int = 0
    """Of weights and batches."""

    def __post_init__(self) -> None:
        if min(self.dim, self.hidden, self.updates, self.batch_size, self.horizon) < 1:
            raise InputError("dim, hidden, updates, batch_size and horizon must be at least 1")
        if self.learning_rate <= 0 or self.spread < 0 or not 0 <= self.decay <= 1:
            raise InputError(
                f"learning_rate {self.learning_rate} must be above 0, spread {self.spread} not below, decay {self.decay} in [0, 1]"
            )


def read(data: EpisodeData, keys: Sequence[str], rows: np.ndarray) -> dict[str, Tensor]:
    """Frames `rows` of a dataset as they are seen: {key: (len(rows), ...)}, vectors float32, pictures uint8 of 64 x 64 pixels.

    Raises:
        DataError: a vector is not finite; its frame is named.
    """
    parts: dict[str, list[Tensor]] = {key: [] for key in keys}
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        window = data.window(block, 1, 1, tuple(keys))
        for key in keys:
            value = torch.from_numpy(np.array(window[key][:, 0]))
            if key in data.observation_spec.images:
                value = small(value)
            elif not bool((finite := torch.isfinite(value).flatten(1).all(1)).all()):
                raise DataError(f"{key} of frame {int(block[int((~finite).nonzero()[0])])} is not finite; run sinew data check")
            parts[key].append(value)
    return {key: torch.cat(value) for key, value in parts.items()}


def small(pixels: Tensor) -> Tensor:
    """Pictures (N, H, W, 3) uint8 of any size → (N, 64, 64, 3) uint8, averaged over the pixels that fall together."""
    if pixels.shape[1:3] == (PICTURE_SIZE, PICTURE_SIZE):
        return pixels
    scaled = functional.interpolate(pixels.permute(0, 3, 1, 2).float(), (PICTURE_SIZE, PICTURE_SIZE), mode="area")
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1)


def train(
    seen: Mapping[str, Tensor], spans: Sequence[slice], encoder: EncoderConfig, config: PredictiveConfig, progress: Progress = SILENT
) -> Encoder:
    """An encoder that predicts later latents from earlier ones.

    Args:
        seen: {key: (F, ...)} frames of all episodes, one episode after the other.
        spans: of each episode in them.
        encoder: what it sees.
        config: settings; the same on the same machine give the same weights.
        progress: told every update.

    Raises:
        InputError: no episode has two frames.
        DataError: what it learned tells nothing; see `check_spread`.
    """
    end = np.concatenate([np.full(s.stop - s.start, s.stop - 1) for s in spans]) if spans else np.zeros(0, np.int64)
    rows = np.concatenate([np.arange(s.start, s.stop) for s in spans]) if spans else np.zeros(0, np.int64)
    if not (end > rows).any():
        raise InputError("there is nothing to learn from: no episode has two frames")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        online = Encoder(encoder, *statistics(_statistics(seen, encoder, rows), encoder))
        guess = nn.Sequential(
            nn.Linear(encoder.dim + 1, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden), nn.SiLU(),
            nn.Linear(config.hidden, encoder.dim),
        )  # fmt: skip
    target = follower(online)
    optimizer = torch.optim.Adam([*online.parameters(), *guess.parameters()], config.learning_rate)
    generator = np.random.default_rng(config.seed)
    progress.start("encoder", config.updates)
    for _ in range(config.updates):
        pick = generator.integers(len(rows), size=config.batch_size)
        later = np.minimum(rows[pick] + generator.integers(1, config.horizon + 1, size=config.batch_size), end[pick])
        ahead = torch.from_numpy((later - rows[pick]).astype(np.float32) / config.horizon)[:, None]
        latents = online({key: seen[key][rows[pick]] for key in seen})
        with torch.no_grad():
            wanted = target({key: seen[key][later] for key in seen})
        loss = functional.smooth_l1_loss(guess(torch.cat((latents, ahead), 1)), wanted) + config.spread * spread_loss(latents)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        follow(target, online, config.decay)
        progress.advance(1)
    online.requires_grad_(False).eval()
    check_spread(encode(online, {key: value[rows] for key, value in seen.items()}))
    return online


@torch.no_grad()
def encode(encoder: Encoder, seen: Mapping[str, Tensor]) -> Tensor:
    """Frames {key: (F, ...)} → latents (F, L), a block at a time."""
    length = len(next(iter(seen.values())))
    return torch.cat([encoder({k: v[i : i + BLOCK] for k, v in seen.items()}) for i in range(0, length, BLOCK)])


def effective_rank(latents: Tensor) -> float:
    """In how many directions latents (F, L) spread: the exponential of the entropy of their covariance's eigenvalues.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.eigvalsh(torch.cov(latents.double().T).reshape(latents.shape[1], -1)).clamp(min=1e-12)
    share = values / values.sum()
    return float(torch.exp(-(share * share.log()).sum()))


def check_spread(latents: Tensor) -> None:
    """Refuse latents (F, L) that have collapsed to a point or a line.

    Raises:
        DataError: says how far they spread.
    """
    spread = float(latents.std(0).mean())
    rank = effective_rank(latents) if spread > 0 else 0.0
    if not spread >= LEAST_SPREAD or not rank >= LEAST_RANK:
        raise DataError(
            f"the encoder tells nothing apart: its latents spread by {spread:.2g} in {rank:.1f} directions; "
            "look whether the demonstrations differ from frame to frame, or train longer"
        )


def _statistics(seen: Mapping[str, Tensor], encoder: EncoderConfig, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    values = {key: seen[key][rows].double().numpy() for key in encoder.vectors}
    return {key: {"mean": v.reshape(len(v), -1).mean(0), "std": v.reshape(len(v), -1).std(0)} for key, v in values.items()}
