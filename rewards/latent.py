"""What is seen as a short vector: a small encoder of states or pictures, trained on the dataset itself, nothing downloaded.

It learns by predicting in its own space (JEPA): a copy that follows slowly gives the targets, and a term on variance and
covariance keeps the vectors from collapsing to one point.

Sources: Assran et al. 2023, arXiv:2301.08243 (joint embedding and prediction); Bardes et al. 2022, arXiv:2105.04906 (the spread).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional

from sinew.config import from_json, to_json
from sinew.errors import DataError, InputError, SpecError
from sinew.rundir import atomic_write
from sinew.specs import ObservationSpec

PICTURE_SIZE = 64
"""Pictures are seen with this many pixels a side."""
FAR = 10.0
"""Standard deviations from the mean beyond which a vector's element is taken for as far as this."""
_CHANNELS = (16, 32, 64, 64)
_MADE = "sinew_latent_made_of"
_MAX_PARAMETERS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """An encoder without its weights."""

    vectors: Mapping[str, int]
    """Observation vectors that are seen, with their lengths."""
    pictures: tuple[str, ...] = ()
    """Cameras that are seen."""
    dim: int = 32
    """Length L of the latent."""
    hidden: int = 128
    """Width of its layers."""

    def __post_init__(self) -> None:
        if not self.vectors and not self.pictures:
            raise InputError("an encoder needs something to see: name vectors or pictures")
        sizes = (self.dim, self.hidden, *self.vectors.values())
        if min(sizes) < 1 or max(sizes) > 4096 or len(self.pictures) > 8:
            raise InputError(f"an encoder's sizes run from 1 to 4096 and it sees at most 8 cameras, got {sizes} and {self.pictures}")

    @property
    def keys(self) -> tuple[str, ...]:
        """All that is seen, vectors first."""
        return (*self.vectors, *self.pictures)

    @classmethod
    def of(cls, spec: ObservationSpec, keys: Sequence[str], **sizes: int) -> EncoderConfig:
        """The configuration that sees `keys` of an observation.

        Raises:
            SpecError: a key is not there; those that are get named.
        """
        missing = [key for key in keys if key not in spec]
        if missing:
            raise SpecError(f"there is no {missing[0]!r} to see; there are {', '.join(spec)}")
        vectors = {key: int(np.prod(spec[key].shape)) for key in keys if key not in spec.images}
        return cls(vectors=vectors, pictures=tuple(key for key in keys if key in spec.images), **sizes)


class Encoder(nn.Module):
    """Observations → latents.

    Args:
        config: what is seen, and sizes.
        mean: (D,) of all vectors one after the other in the order of `config.vectors`, physical units; zero if left out.
        std: (D,), likewise; one if left out. Elements that hardly vary are divided by a small fixed amount, not by noise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, mean: np.ndarray | None = None, std: np.ndarray | None = None) -> None:
        super().__init__()
        self.config = config
        size = sum(config.vectors.values())
        self.register_buffer("mean", torch.zeros(size) if mean is None else torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.ones(size) if std is None else torch.as_tensor(std, dtype=torch.float32).clamp(min=1e-3))
        self.eyes = nn.ModuleList(_eye(config.hidden) for _ in config.pictures)
        width = size + config.hidden * len(config.pictures)
        self.head = nn.Sequential(
            nn.Linear(width, config.hidden), nn.LayerNorm(config.hidden), nn.SiLU(),
            nn.Linear(config.hidden, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.dim),
        )  # fmt: skip

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)}, vectors in physical units, pictures uint8 (N, H, W, 3) of any size → latents (N, L)."""
        parts = []
        if self.config.vectors:
            vectors = torch.cat([seen[key].flatten(1).float() for key in self.config.vectors], dim=1)
            parts.append(((vectors - self.mean) / self.std).clamp(-FAR, FAR))
        parts += [eye(_picture(seen[key])) for key, eye in zip(self.config.pictures, self.eyes, strict=True)]
        return self.head(torch.cat(parts, dim=1))


class Sight:
    """What an encoder that is trained no more makes of observations, in as few operations as may be: between two steps of physics each
    costs more than what it computes. Mean and standard deviation of vectors are part of the first layer here.

    Args:
        encoder: as it will stay.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.config, self.eyes, vectors = encoder.config, encoder.eyes, len(encoder.mean)
        first, self.norm, _, second, _, last = cast("Any", encoder.head)
        self.low, self.high = encoder.mean - FAR * encoder.std, encoder.mean + FAR * encoder.std
        with torch.no_grad():
            weight = first.weight.clone()
            weight[:, :vectors] /= encoder.std
            self.first = (first.bias - weight[:, :vectors] @ encoder.mean, weight.T.contiguous())
            self.second, self.last = ((layer.bias.clone(), layer.weight.T.contiguous()) for layer in (second, last))

    def gather(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Of observations {key: (N, ...)} what the encoder sees, copied to the CPU: all vectors as one (N, D), then each picture."""
        vectors = [obs[key].cpu().flatten(1).float() for key in self.config.vectors]
        pictures = (obs[key].cpu().clone() for key in self.config.pictures)
        return (torch.cat(vectors, dim=1), *pictures) if vectors else tuple(pictures)

    def latents(self, gathered: Sequence[Tensor]) -> Tensor:
        """What was gathered → latents (N, L)."""
        parts = [gathered[0].clamp(self.low, self.high)] if self.config.vectors else []
        parts += [eye(_picture(picture)) for eye, picture in zip(self.eyes, gathered[len(parts) :], strict=True)]
        hidden = self.norm(torch.addmm(self.first[0], parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), self.first[1]))
        hidden = torch.addmm(self.second[0], functional.silu(hidden), self.second[1])
        return torch.addmm(self.last[0], functional.silu(hidden), self.last[1])

    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Observations {key: (N, ...)}, which may hold more than the encoder sees → latents (N, L), on the CPU."""
        return self.latents(self.gather(obs))


def statistics(stats: Mapping[str, Mapping[str, np.ndarray]], config: EncoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) of the vectors that an encoder sees, from a dataset's `stats()`."""
    if not config.vectors:
        return np.zeros(0), np.ones(0)
    return tuple(np.concatenate([stats[key][name].reshape(-1) for key in config.vectors]) for name in ("mean", "std"))  # type: ignore[return-value]


def follower(module: nn.Module) -> nn.Module:
    """A copy that gives targets: it is never trained, only drawn along by `follow`."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, decay: float = 0.99) -> None:
    """Draw the copy along: `decay` of its own weights is kept."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1.0 - decay)


def spread_loss(latents: Tensor) -> Tensor:
    """Scalar that is zero where every element of latents (N, L) has a standard deviation of at least 1 and none goes with another.

    Source: variance and covariance terms of Bardes et al. 2022, weighted 1 to 0.04 as there.
    """
    centred = latents - latents.mean(0)
    deviation = (centred.square().sum(0) / max(1, len(latents) - 1) + 1e-4).sqrt()
    covariance = centred.T @ centred / max(1, len(latents) - 1)
    beside = covariance - torch.diag(covariance.diagonal())
    return functional.relu(1.0 - deviation).mean() + 0.04 * beside.square().sum() / latents.shape[1]


# ---------------------------------------------------------------- files


def save_tensors(path: Path, tensors: Mapping[str, Tensor], described: Any) -> None:
    """Write tensors, and what they belong to (a dataclass or mapping), as one safetensors file.

    Raises:
        DataError: a tensor is not finite; a file that is there stays.
    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    wrong = [name for name, tensor in kept.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise DataError(f"{wrong[0]} is not finite, so {path} is not written: train again with a lower learning rate")
    atomic_write(path, to_bytes(kept, {_MADE: json.dumps(to_json(described))}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote: tensors and description.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged, holds what is not finite, or was not written here.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} is not there; it belongs beside the reward file that names it")
    try:
        with safe_open(path, framework="pt") as file:
            made = json.loads((file.metadata() or {})[_MADE])
            names = list(file.keys())
            sizes = [int(np.prod(file.get_slice(name).get_shape())) for name in names]
            if sum(sizes) > _MAX_PARAMETERS:
                raise DataError(f"{path} holds {sum(sizes)} numbers, more than the {_MAX_PARAMETERS} of any reward here")
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as e:
        raise DataError(f"{path} holds no weights of a reward: {type(e).__name__} {e}") from None
    if not isinstance(made, dict) or any(not torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise DataError(f"{path} is damaged: a tensor is not finite, or nothing says what it belongs to")
    return tensors, made


def restore(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors of a file into a module.

    Raises:
        DataError: they do not fit.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as e:
        raise DataError(f"{path} does not fit what it says it belongs to: {str(e).splitlines()[-1].strip()}") from None


def save_encoder(path: Path, encoder: Encoder, made: Mapping[str, Any]) -> None:
    """Write an encoder with what tells how it came about."""
    save_tensors(path, encoder.state_dict(), {"encoder": to_json(encoder.config), "made": dict(made)})


def load_encoder(path: Path) -> Encoder:
    """The encoder of a file, for use: nothing in it is trained.

    Raises:
        InputError: there is no such file.
        DataError: it is damaged or holds something else.
    """
    tensors, described = load_tensors(path)
    encoder = Encoder(from_json(EncoderConfig, described.get("encoder"), str(path)))
    restore(encoder, tensors, path)
    return encoder.requires_grad_(False).eval()


def _eye(hidden: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for channels in _CHANNELS:
        layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), nn.GroupNorm(8, channels), nn.SiLU()]
        before = channels
    side = PICTURE_SIZE >> len(_CHANNELS)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, hidden))


def _picture(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, 64, 64) in [-1, 1]."""
    picture = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    if picture.shape[-2:] == (PICTURE_SIZE, PICTURE_SIZE):
        return picture
    return functional.interpolate(picture, (PICTURE_SIZE, PICTURE_SIZE), mode="area")
