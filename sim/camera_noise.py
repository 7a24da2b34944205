"""What a real camera does to a picture: exposure, white balance, noise, shaking, blur; for all worlds at once, on any device.

Everything random depends on the seed of the episode, the step, the camera and the pixel alone, so that an episode looks the same
wherever it is played, and beside how many others. Gains multiply the values of pixels as they are, not light.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sim.sampling import Sampler, stream_of

KINDS = ("exposure", "white_balance", "image_noise", "image_jitter", "motion_blur")
"""Parameters that act on pictures."""


class CameraNoise:
    """The cameras of N worlds.

    Args:
        sampler: which numbers are drawn.
        cameras: names of the cameras that are observed.
        num_envs: N.
        device: where pictures are.
    """

    def __init__(self, sampler: Sampler, cameras: Sequence[str], num_envs: int, device: torch.device | str = "cpu") -> None:
        slots = [(i, slot) for i, slot in enumerate(sampler.slots) if slot.what in KINDS and slot.name in cameras]
        self._columns = {(slot.name, slot.what, slot.part): i for i, slot in slots}
        self._streams = {camera: stream_of(camera) % 2**31 for camera in cameras}
        self._before: dict[str, Tensor] = {}
        self._values = torch.zeros(num_envs, len(sampler.slots), device=device)
        self.active = bool(slots)
        """Whether pictures are changed at all."""

    def begin(self, which: Tensor, values: Tensor) -> None:
        """Worlds where `which` (N,) is true are played with values (N, P) from now on."""
        self._values = torch.where(which[:, None], values.float(), self._values)

    def seen(self, camera: str, images: Tensor, seeds: Tensor, steps: Tensor, rows: Tensor) -> Tensor:
        """What comes of pictures (n, H, W, 3) uint8.

        Args:
            camera: its name.
            images: as drawn.
            seeds: (n,) of the episodes.
            steps: (n,) since these began; at 0 there is no picture before.
            rows: (n,) worlds that they are of.
        """
        values = self._values[rows]
        if not any(key[0] == camera for key in self._columns):
            return images
        made = self._blurred(camera, images, steps, rows, self._value(values, camera, "motion_blur"))
        keys = mixed(_int32(seeds) ^ _int32(seeds >> 32) * 31 ^ mixed(_int32(steps) ^ self._streams[camera]))
        made = _shifted(made, keys, self._value(values, camera, "image_jitter"))
        gain = torch.exp2(self._value(values, camera, "exposure"))
        gains = [gain * self._value(values, camera, "white_balance", part, 1.0) for part in ("r", "", "b")]
        made = made * torch.stack(gains, 1)[:, None, None]
        level = self._value(values, camera, "image_noise")
        if (camera, "image_noise", "") in self._columns:
            made = made + level[:, None, None, None] * normal(keys, made.shape[1:])
        return made.round().clamp(0, 255).to(torch.uint8)

    def _value(self, values: Tensor, camera: str, what: str, part: str = "", usual: float = 0.0) -> Tensor:
        column = self._columns.get((camera, what, part))
        return torch.full_like(values[:, 0], usual) if column is None else values[:, column]

    def _blurred(self, camera: str, images: Tensor, steps: Tensor, rows: Tensor, share: Tensor) -> Tensor:
        """Pictures (n, H, W, 3) float32 with a share of those before."""
        if (camera, "motion_blur", "") not in self._columns:
            return images.float()
        if camera not in self._before:
            self._before[camera] = images.new_zeros((len(self._values), *images.shape[1:]))
        before = torch.where((steps == 0)[:, None, None, None], images, self._before[camera][rows])
        self._before[camera][rows] = images
        share = share[:, None, None, None]
        return (1 - share) * images.float() + share * before.float()


def _shifted(images: Tensor, keys: Tensor, most: Tensor) -> Tensor:
    """Pictures shifted by whole pixels, at most `most` (n,) up, down, left and right; what comes in repeats the edge."""
    height, width = images.shape[1:3]
    span = 2 * most.floor() + 1
    moves = [(_share(mixed(keys ^ salt)) * span).floor().long() - most.floor().long() for salt in (0x51ED27, 0x2F6B4C)]
    y = (torch.arange(height, device=images.device) + moves[0][:, None]).clamp(0, height - 1)
    x = (torch.arange(width, device=images.device) + moves[1][:, None]).clamp(0, width - 1)
    worlds = torch.arange(len(images), device=images.device)
    return images[worlds[:, None, None], y[:, :, None], x[:, None, :]]


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """(n, *shape) nearly normal numbers of mean 0 and variance 1 from keys (n,) int32: sums of the four bytes of a hash, within ±3.5."""
    places = torch.arange(int(np.prod(shape)), dtype=torch.int32, device=keys.device)
    bits = mixed(mixed(places)[None] ^ keys[:, None])
    total = torch.stack([(bits >> shift) & 255 for shift in (0, 8, 16, 24)]).sum(0)
    return ((total - 510).float() / np.sqrt(4 * (256**2 - 1) / 12)).reshape(len(keys), *shape)


def mixed(x: Tensor) -> Tensor:
    """A hash of int32, bit for bit the same on every device. Source: Wellons 2018, Prospecting for Hash Functions ("lowbias32")."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def _int32(x: Tensor) -> Tensor:
    """The lowest 32 bits of whole numbers."""
    x = x & 0xFFFFFFFF
    return torch.where(x >= 2**31, x - 2**32, x).int()


def _share(x: Tensor) -> Tensor:
    """int32 → [0, 1)."""
    return ((x >> 8) & 0xFFFFFF).float() / 2**24
