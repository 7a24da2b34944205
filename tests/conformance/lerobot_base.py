"""A diffusion policy of LeRobot on a dataset of ours, trained with LeRobot's own loss and saved as LeRobot saves it.

What `lerobot-train --policy.type=diffusion` does, but for its data loader, which fetches every window on its own. Run by itself
it makes a base for `sinew improve hf:<out> --task lift`:

    python tests/conformance/lerobot_base.py DATA OUT [steps] [seed]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

OPTIMIZER = {"lr": 1e-3, "weight_decay": 1e-6}
SIZES: dict[str, Any] = {
    "down_dims": (64, 128),
    "n_groups": 8,
    "diffusion_step_embed_dim": 64,
    "horizon": 16,
    "n_action_steps": 8,
    "n_obs_steps": 1,
    "noise_scheduler_type": "DDIM",
    "num_train_timesteps": 50,
    "num_inference_steps": 5,
}
"""A network that a CPU trains in minutes."""


def train(data: Path, out: Path, steps: int, *, seed: int = 0, batch_size: int = 64, **sizes: Any) -> float:
    """Train on the vectors of a dataset and save; gives the last loss.

    Args:
        data: folder of the dataset.
        out: folder that LeRobot saves policy and processors to.
        steps: optimiser steps, with a cosine schedule.
        seed: of weights, batches and noise.
        batch_size: windows per step.
        sizes: settings of LeRobot's DiffusionConfig in place of `SIZES`.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    import demos
    from sinew.specs import STATE

    dataset = demos.Dataset(data)
    spec = dataset.observation_spec
    torch.manual_seed(seed)
    inputs = {key: PolicyFeature(FeatureType.STATE if key == STATE else FeatureType.ENV, spec[key].shape) for key in spec.vectors}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (dataset.action_spec.dim,))}
    config = DiffusionConfig(input_features=inputs, output_features=outputs, device="cpu", push_to_hub=False, **{**SIZES, **sizes})
    policy = DiffusionPolicy(config)
    stats = {key: {name: torch.from_numpy(np.asarray(v, np.float32)) for name, v in s.items()} for key, s in dataset.stats().items()}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    window = dataset.window(np.arange(len(dataset)), config.n_obs_steps, config.horizon, [*spec.vectors, "action"])
    every = {key: torch.from_numpy(value) for key, value in window.items()}
    optimizer = torch.optim.AdamW(policy.parameters(), **OPTIMIZER)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    policy.train()
    loss = torch.zeros(())
    for _ in range(steps):
        rows = torch.randint(len(dataset), (batch_size,))
        batch = before({key: value[rows] for key, value in every.items()})
        loss, _ = policy.forward({**batch, "action_is_pad": every["action_is_pad"][rows]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    policy.eval().save_pretrained(out)
    for processor in (before, after):
        processor.save_pretrained(out)
    return float(loss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    more = [int(text) for text in sys.argv[3:]]
    print(train(Path(sys.argv[1]), Path(sys.argv[2]), *more[:1] or [4_000], seed=more[1] if len(more) > 1 else 0))
