"""Observations to one vector: normalised state, and per camera a ResNet with spatial softmax or a small vision transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policies.normalizer import Normalizer
from sinew.errors import SpecError
from sinew.specs import ObservationSpec

KINDS = ("small", "resnet18", "vit")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Settings of the image encoder."""

    kind: str = "small"
    """"small" (one residual block per stage, for a CPU), "resnet18" (ResNet-18 with group norm) or "vit" (a vision
    transformer); the first two end in a spatial softmax."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Channels of the small network's stages; every stage but the first halves the resolution, after a stem that halves it."""
    keypoints: int = 32
    """Channels of the spatial softmax: feature points found per camera."""
    feature_dim: int = 64
    """Length of a camera's feature vector."""
    groups: int = 8
    """Groups of the group norm; divides all channels."""
    patch_px: int = 8
    """Side of the vision transformer's patches; divides height and width of the images."""
    width: int = 128
    """Length of the vision transformer's tokens."""
    layers: int = 4
    """Blocks of the vision transformer."""
    heads: int = 4
    """Its attention heads; divides the width."""
    shift_px: int = 4
    """Random shift of training images in pixels, up, down, left and right; 0 for none."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError(f"image encoder kind {self.kind!r} is unknown: known are {', '.join(KINDS)}")
        if min(self.patch_px, self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise SpecError(f"image patch_px, layers and heads must be at least 1, and width {self.width} a multiple of heads {self.heads}")
        if self.groups < 1 or not self.channels or any(c < 1 or c % self.groups for c in self.channels):
            raise SpecError(f"image channels {self.channels} must be multiples of the {self.groups} groups of the norm")
        if min(self.keypoints, self.feature_dim) < 1 or self.shift_px < 0:
            raise SpecError("image keypoints and feature_dim must be at least 1, shift_px at least 0")


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of each channel: (B, C, H, W) → (B, 2 C) in [-1, 1].

    Source: Finn et al. 2016, arXiv:1509.06113, section IV.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The x coordinates of all channels, then the y coordinates."""
        height, width = x.shape[-2:]
        weight = x.flatten(2).softmax(-1).view_as(x)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        return torch.cat([(weight.sum(-2) * columns).sum(-1), (weight.sum(-1) * rows).sum(-1)], dim=-1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm around a skip connection."""

    def __init__(self, channels_in: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.GroupNorm(groups, channels),
        )
        same = stride == 1 and channels_in == channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        return nn.functional.silu(self.body(x) + self.skip(x))


def convolutional_trunk(config: ImageConfig) -> nn.Sequential:
    """(B, 3, H, W) → feature map (B, C, H', W'): the small network, or ResNet-18 (He et al. 2015, arXiv:1512.03385) with group norm."""
    if config.kind == "resnet18":
        channels, blocks, first = (64, 128, 256, 512), 2, 64
        stem: list[nn.Module] = [nn.Conv2d(3, first, 7, 2, 3, bias=False), nn.GroupNorm(config.groups, first), nn.SiLU()]
        stem.append(nn.MaxPool2d(3, 2, 1))
    else:
        channels, blocks, first = config.channels, 1, config.channels[0]
        stem = [nn.Conv2d(3, first, 5, 2, 2, bias=False), nn.GroupNorm(config.groups, first), nn.SiLU()]
    stages: list[nn.Module] = []
    previous = first
    for index, width in enumerate(channels):
        for block in range(blocks):
            stages.append(ResidualBlock(previous, width, 2 if index and not block else 1, config.groups))
            previous = width
    return nn.Sequential(*stem, *stages)


class ImageEncoder(nn.Module):
    """One camera: (B, H, W, 3) uint8 → (B, feature_dim) float32.

    Args:
        config: settings.
        height: H, pixels.
        width: W, pixels.

    Raises:
        SpecError: patches do not divide the image.
    """

    def __init__(self, config: ImageConfig, height: int, width: int) -> None:
        super().__init__()
        if config.kind == "vit":
            self.trunk: nn.Module = PatchTransformer(config, height, width)
            found = config.width
        else:
            convolutions = convolutional_trunk(config)
            channels = 512 if config.kind == "resnet18" else config.channels[-1]
            self.trunk = nn.Sequential(*convolutions, nn.Conv2d(channels, config.keypoints, 1, bias=False), SpatialSoftmax())
            found = 2 * config.keypoints
        self.head = nn.Linear(found, config.feature_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels 0..255 are mapped to [-1, 1]."""
        x = image.movedim(-1, 1).to(self.head.weight.dtype) / 127.5 - 1
        return self.head(self.trunk(x.contiguous()))


class PatchTransformer(nn.Module):
    """A small vision transformer whose class token is the image's vector: (B, 3, H, W) → (B, width).

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929.
    """

    def __init__(self, config: ImageConfig, height: int, width: int) -> None:
        super().__init__()
        if height % config.patch_px or width % config.patch_px:
            raise SpecError(f"image patches of {config.patch_px} px do not divide {height} x {width} pixels: set image.patch_px")
        self.patches = nn.Conv2d(3, config.width, config.patch_px, config.patch_px)
        rows, columns = height // config.patch_px, width // config.patch_px
        self.place = nn.Parameter(0.02 * torch.randn(rows * columns, config.width))
        self.summary = nn.Parameter(torch.zeros(config.width))
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """The class token after all blocks."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.blocks(torch.cat([self.summary.expand(len(x), 1, -1), tokens], dim=1))[:, 0]


def check_given(obs: Mapping[str, Tensor], spec: ObservationSpec, lead: tuple[int, ...]) -> None:
    """Check that observations {key: (B, *lead, ...)} are there and have the shapes of the spec.

    Raises:
        SpecError: names the first that is missing or differs.
    """
    for key, want in spec.tensors.items():
        if key not in obs:
            raise SpecError(f"the policy looks at {key!r} and the observation has {', '.join(obs) or 'nothing'}: "
                            "give it, or train without it (--keys)")
        if tuple(obs[key].shape[1:]) != (*lead, *want.shape):
            wanted = ", ".join(map(str, ("batch", *lead, *want.shape)))
            raise SpecError(f"{key!r} has shape {tuple(obs[key].shape)}, the policy looks at ({wanted}): give it all steps, in that shape")


class ObservationEncoder(nn.Module):
    """All vectors and cameras over To steps, flattened to one vector.

    Args:
        spec: the observation.
        n_obs_steps: To.
        config: settings of the image encoder, one network per camera.
    """

    def __init__(self, spec: ObservationSpec, n_obs_steps: int, config: ImageConfig) -> None:
        super().__init__()
        if not spec.tensors:
            raise SpecError("the observation spec is empty: a policy needs at least one vector or camera")
        self.spec, self.n_obs_steps = spec, n_obs_steps
        self.normalizer = Normalizer(spec)
        self.cameras = spec.images
        self.images = nn.ModuleList(ImageEncoder(config, *spec[key].shape[:2]) for key in self.cameras)
        self.step_dim = self.normalizer.dim + config.feature_dim * len(self.cameras)

    @property
    def dim(self) -> int:
        """Length of the output, To * (D + cameras * feature_dim)."""
        return self.n_obs_steps * self.step_dim

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (B, To, ...)} → (B, dim)."""
        check_given(obs, self.spec, (self.n_obs_steps,))
        return self._features(obs, 2).flatten(1)

    def newest(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: (N, ...)} of one step → (N, D + cameras * feature_dim)."""
        check_given(obs, self.spec, ())
        return self._features(obs, 1)

    def _features(self, obs: Mapping[str, Tensor], leading: int) -> Tensor:
        parts = [self.normalizer(obs, leading)] if self.normalizer.keys else []
        for key, encoder in zip(self.cameras, self.images, strict=True):
            image = obs[key]
            parts.append(encoder(image.flatten(0, leading - 1)).unflatten(0, image.shape[:leading]))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def random_shift(image: Tensor, shift: Tensor) -> Tensor:
    """Move images by whole pixels, repeating the border.

    Args:
        image: (B, To, H, W, 3) uint8; all steps of a sample move together.
        shift: (B, 2) int64, rows and columns.

    Returns:
        Tensor like `image`.

    Source: Kostrikov et al. 2020, arXiv:2004.13649 (shift by padding and cropping).
    """
    height, width = image.shape[2:4]
    rows = (torch.arange(height, device=image.device) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=image.device) + shift[:, 1:]).clamp(0, width - 1)
    sample = torch.arange(image.shape[0], device=image.device)
    return image[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
