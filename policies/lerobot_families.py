"""What differs between LeRobot's types of policies when they are sampled; works on its objects without importing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinew.errors import InputError

UNFIT = ("sac", "tdmpc", "reward_classifier", "sarm")
"""Types that are no chunked policies, or plan from what they planned before."""


@dataclass(frozen=True)
class Family:
    """What differs between LeRobot's types of policies."""

    encode: Callable[[dict[str, Any]], dict[str, Any]]
    """Preprocessed batch → what all candidates of an observation share."""
    chunk: Callable[[dict[str, Any], Tensor], Tensor]
    """The same with a row per candidate, and noise (rows, *noise_shape) → actions (rows, H or more, A), not postprocessed."""
    noise_shape: tuple[int, ...] = ()
    seeded: bool = False
    """The policy draws by itself: each row is sampled alone, from a generator seeded by its noise."""
    probe: nn.Module | None = None
    """Layer whose input, averaged over the chunk, is the feature vector."""
    probe_axes: tuple[int, int] = (1, 2)
    """Axes of that input: time and channels."""
    steps: tuple[Any, str] | None = None
    """Object and attribute that hold the number of sampling steps."""

    @property
    def feature_dim(self) -> int:
        """Channels of the probed layer's input; 0 where none is probed."""
        probe: Any = self.probe
        return 0 if probe is None else int(probe.in_channels if isinstance(probe, nn.Conv1d) else probe.in_features)


def family(policy: Any) -> Family:
    """How a policy of LeRobot is sampled.

    Raises:
        InputError: it cannot act in chunks, or looks at several observations in a way that is not known here.
    """
    config, kind = policy.config, policy.config.type
    if kind in UNFIT:
        raise InputError(f"a policy of LeRobot's type {kind!r} cannot be used: it is no chunked policy, or keeps a plan of its own")
    if kind == "act":
        return Family(lambda batch: {"chunk": policy.predict_action_chunk(batch)}, lambda wide, noise: wide["chunk"],
                      probe=policy.model.action_head)  # fmt: skip
    if kind == "diffusion":
        return _diffusion(policy)
    if kind == "vqbet":
        return Family(lambda batch: _stacked(policy, batch), lambda wide, noise: policy.vqbet(wide, rollout=True), (1,), seeded=True)
    if kind == "sinew":
        raise InputError("this is a policy of Sinew in LeRobot's clothes: lerobot_policy_sinew.convert.to_run makes it a run again")
    if getattr(config, "n_obs_steps", 1) != 1:
        raise InputError(f"policies of LeRobot's type {kind!r} look at {config.n_obs_steps} observations in a way that is not known here")
    if kind in ("smolvla", "pi0", "pi05"):
        shape = (config.chunk_size, config.max_action_dim)
        steps = (config, "num_steps" if kind == "smolvla" else "num_inference_steps")
        return Family(dict, lambda wide, noise: policy.predict_action_chunk(dict(wide), noise=noise), shape,
                      probe=policy.model.action_out_proj, steps=steps)  # fmt: skip
    return Family(dict, lambda wide, noise: policy.predict_action_chunk(dict(wide)), (1,), seeded=True)


def _diffusion(policy: Any) -> Family:
    """DiffusionPolicy: the condition is shared by all candidates, and the action at the newest observation comes first."""
    model, config = policy.diffusion, policy.config
    first = config.n_obs_steps - 1

    def chunk(wide: dict[str, Any], noise: Tensor) -> Tensor:
        sampled = model.conditional_sample(len(noise), global_cond=wide["condition"], noise=noise)
        return sampled[:, first : first + config.n_action_steps]

    return Family(
        lambda batch: {"condition": model._prepare_global_conditioning(_stacked(policy, batch))},
        chunk,
        (config.horizon, config.action_feature.shape[0]),
        probe=model.unet.final_conv[-1],
        probe_axes=(2, 1),
        steps=(model, "num_inference_steps"),
    )


def _stacked(policy: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch (B, To, ...) with all cameras in one tensor (B, To, cameras, 3, H, W), as LeRobot's U-Net and VQ-BeT take it."""
    cameras = list(policy.config.image_features)
    return {**batch, "observation.images": torch.stack([batch[key] for key in cameras], dim=-4)} if cameras else batch
