"""Progress as the nearest recorded success sees it: the closest frames of successes tell how far one has come, and how far off.

The distance to the nearest success, of single ones: clusters of successes degenerate in many dimensions (every success is noise to
DBSCAN there, and their mean is no success). Distance to where successes ended alone does not grow monotonically on the way, so that
the closest frames' time is what counts, and closeness decides how much.

Source: the success-referenced reward of SRPO, Fei et al. 2025, arXiv:2511.15605, with nearest neighbours in place of its clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rewards.files import KINDS, RewardUnavailable, Situation
from rewards.latent import Encoder, EncoderConfig, load_tensors, restore, save_tensors
from rewards.learned import LearnedSettings, SeenPotential, ShapedBySight, check_seen
from sinew.config import from_json, to_json
from sinew.errors import DataError
from sinew.protocols import Reward

MOST_FRAMES = 4096
"""Frames of successes that are kept; of more, every second, third, … is."""
MOST_ASKED = 256
"""Frames of successes that are asked, as far from each other as can be: with more, asking costs time and says no more."""
TOLERANCE = 2.0
"""At so many scales further away than successes are from each other, progress counts half."""


@dataclass(frozen=True)
class Successes:
    """Recorded successes as latents."""

    latents: Tensor
    """(R, L), one episode after the other."""
    time: Tensor
    """(R,) from 0 at an episode's first frame to 1 at its last."""
    episode: Tensor
    """(R,) int64."""
    scale: Tensor
    """(): how far a success's frame usually is from the closest one of another success."""

    @classmethod
    def of(cls, episodes: Sequence[Tensor]) -> Successes:
        """From the latents (T_i, L) of each success.

        Raises:
            RewardUnavailable: fewer than two successes.
        """
        episodes = [e for e in episodes if len(e) > 1]
        if len(episodes) < 2:
            raise RewardUnavailable(f"{len(episodes)} recorded successes; at least 2 are needed to tell what is near a success")
        stride = -(-sum(map(len, episodes)) // MOST_FRAMES)
        kept = [torch.arange(len(e) - 1, -1, -stride).flip(0) for e in episodes]
        latents = torch.cat([e[i] for e, i in zip(episodes, kept, strict=True)])
        time = torch.cat([i / (len(e) - 1) for e, i in zip(episodes, kept, strict=True)])
        episode = torch.cat([torch.full((len(i),), n) for n, i in enumerate(kept)])
        apart = torch.cdist(latents, latents).masked_fill(episode[:, None] == episode[None], torch.inf)
        return cls(latents, time.float(), episode, apart.amin(1).median().clamp(min=1e-6))

    @cached_property
    def asked(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Of at most `MOST_ASKED` frames: latents over the square of the scale (L, M), minus half their squares (M,), and time (M,);
        and one over the square of the scale.
        """
        kept = spread(self.latents, MOST_ASKED)
        latents = self.latents[kept] / self.scale
        return (latents / self.scale).T.contiguous(), -0.5 * latents.square().sum(1), self.time[kept], 1.0 / float(self.scale) ** 2

    def progress(self, latents: Tensor) -> Tensor:
        """Latents (N, L) → (N,) in [0, 1]: 0 where successes begin or far from all of them, 1 where they end."""
        frames, offset, time, shrink = self.asked
        closeness = torch.addmm(offset, latents, frames)  # half the square of the latent, less half that of its distance, in scales
        distance = torch.add(-2 * closeness.amax(1), latents.square().sum(1), alpha=shrink).clamp_(min=1.0).sqrt_()
        far = distance.sub_(1.0).square_().div_(TOLERANCE**2).add_(1.0)
        return torch.softmax(closeness, 1).mv(time).clamp_(max=1.0).div_(far)


def spread(points: Tensor, most: int) -> Tensor:
    """Indices of at most `most` of points (R, L): first the last one, then always the one farthest from those before.

    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance": no point is farther from those chosen than twice
    the least that as many could reach.
    """
    chosen = [len(points) - 1]
    distance = (points - points[-1]).square().sum(1)
    while len(chosen) < min(most, len(points)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)


@KINDS.add("progress")
@dataclass(frozen=True, kw_only=True)
class Progress(LearnedSettings):
    """How far an episode has come as a potential: -1 at the start or off the way, 0 where successes end."""

    low, high = -1.0, 0.0

    def build(self, situation: Situation) -> Reward:
        """See `rewards.files.Kind`."""
        encoder, successes = load(situation.folder / self.weights)
        check_seen(encoder.config, situation)
        successes.progress(successes.latents[:1])  # chooses the frames that are asked now, and not at the first step
        potential = SeenPotential(encoder, lambda latents: successes.progress(latents) - 1.0, self.low, self.high)
        return ShapedBySight(potential, situation.gamma, self.weight)


def save(path: Path, encoder: Encoder, successes: Successes, made: Mapping[str, object]) -> None:
    """Write encoder and successes as one safetensors file."""
    tensors = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    tensors |= {name: getattr(successes, name) for name in ("latents", "time", "episode", "scale")}
    save_tensors(path, tensors, {"encoder": to_json(encoder.config), "made": dict(made)})


def load(path: Path) -> tuple[Encoder, Successes]:
    """What `save` wrote.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged or holds something else.
        RewardUnavailable: it holds no successes.
    """
    tensors, described = load_tensors(path)
    encoder = Encoder(from_json(EncoderConfig, described.get("encoder"), str(path)))
    restore(encoder, {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}, path)
    missing = [name for name in ("latents", "time", "episode", "scale") if name not in tensors]
    if missing:
        raise DataError(f"{path} holds no {missing[0]} of successes; make it again with sinew reward progress")
    successes = Successes(tensors["latents"], tensors["time"], tensors["episode"], tensors["scale"])
    if not len(successes.latents):
        raise RewardUnavailable(f"{path} holds no success")
    if successes.latents.shape != (len(successes.time), encoder.config.dim) or len(successes.episode) != len(successes.time):
        raise DataError(f"{path} is damaged: its successes do not fit its encoder")
    return encoder.requires_grad_(False).eval(), successes
