"""A vision-language model from scratch: SmolVLM in small, so that a policy trains on a CPU and without any download."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.vla.backbone import Backbone, rebuild
from sinew.errors import SpecError

TINY = "tiny"
"""Name under which it is asked for."""


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Sizes of the backbone that is made from scratch: SmolVLM in small, fast enough to be trained on a CPU."""

    patch_px: int = 8
    """Side of an image patch in pixels."""
    shuffle: int = 1
    """Side of the square of patches that become one token (pixel shuffle)."""
    width: int = 96
    """Width of vision tower and language model."""
    heads: int = 4
    """Attention heads of both."""
    kv_heads: int = 4
    """Key-value heads of the language model."""
    vision_layers: int = 2
    """Layers of the vision tower."""
    text_layers: int = 3
    """Layers of the language model."""
    mlp_ratio: float = 2.0
    """Hidden units of the MLPs over the width."""

    def __post_init__(self) -> None:
        counts = (self.patch_px, self.shuffle, self.width, self.heads, self.kv_heads, self.vision_layers, self.text_layers)
        if min(counts) < 1 or self.mlp_ratio <= 0:
            raise SpecError("all sizes of the tiny backbone must be at least 1 and mlp_ratio above 0")
        if self.width % (2 * self.heads) or self.heads % self.kv_heads:
            raise SpecError(f"tiny width {self.width} must be a multiple of twice its {self.heads} heads, "
                            f"and these of its {self.kv_heads} kv_heads")


def make_tiny(tokens: int, image_px: int, config: TinyConfig) -> Backbone:
    """A small backbone with fresh weights.

    Args:
        tokens: size of the vocabulary.
        image_px: side of the images; padded to whole tokens.
        config: sizes.
    """
    cell = config.patch_px * config.shuffle
    side = max(1, -(-image_px // cell)) * cell
    hidden = round(config.width * config.mlp_ratio)
    deviation = config.width**-0.5
    shared = {"hidden_size": config.width, "intermediate_size": hidden, "num_attention_heads": config.heads}
    vision = {
        **shared,
        "num_hidden_layers": config.vision_layers,
        "image_size": side,
        "patch_size": config.patch_px,
        "initializer_range": deviation,
    }
    text = {
        **shared,
        "model_type": "llama",
        "num_hidden_layers": config.text_layers,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width // config.heads,
        "vocab_size": tokens,
        "initializer_range": deviation,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    described = {
        "model_type": "smolvlm",
        "vision_config": vision,
        "text_config": text,
        "scale_factor": config.shuffle,
        "image_token_id": 0,
        "initializer_range": deviation,
    }
    backbone = rebuild({"model": described, "image_px": side, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "dtype": "float32"})
    with torch.no_grad():
        backbone.model.vision_model.embeddings.position_embedding.weight.copy_(plane_waves(side // config.patch_px, config.width))
    return backbone


def plane_waves(side: int, width: int) -> Tensor:
    """Places on a square grid as sines and cosines of its rows and columns, (side^2, width), root mean square 0.5.

    Near places are alike from the start: where to move for what is seen at one place tells about the next, which places
    drawn at random would have to learn one by one.
    """
    count = -(-width // 4)
    frequencies = math.pi * torch.logspace(-1, math.log2(max(2, side / 2)), count, base=2)
    angle = torch.linspace(0, 1, side)[:, None] * frequencies
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, 2 count)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)[:, :width] * 0.5**0.5
