"""A diffusion policy of LeRobot for `rl_bases`: its own class, processors, optimiser and schedule, fed from memory.

`lerobot-train` reads every sample from its dataset by itself, which on a small state policy takes longer than the step (2 to 19 s a
step of 64 on a loaded core, where this loop takes 0.1 s). What is learned from is the same: windows of the recorded episodes, the last
frames of each left out as its config says. Run by the Python of a venv with lerobot:

    python -m sinew.cli.benchmarks.lerobot_base DATASET OUT [steps] [seed]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEPS, BATCH, LEARNING_RATE = 6_000, 64, 1e-3
WIDTHS, STEP_WIDTH, SAMPLING_STEPS = (64, 128), 64, 8
"""Of the U-Net and of its embedding of the noise level; DDIM steps."""
CLIP = 10.0
"""Norm of gradients, LeRobot's default."""


def train(root: Path, out: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train on a LeRobotDataset of states, and write what LeRobot's `from_pretrained` reads."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata  # pyright: ignore[reportMissingImports]
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # pyright: ignore[reportMissingImports]
    from lerobot.policies.factory import make_policy, make_pre_post_processors  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    meta = LeRobotDatasetMetadata("local/base", root=root)
    config = DiffusionConfig(
        down_dims=WIDTHS, diffusion_step_embed_dim=STEP_WIDTH, noise_scheduler_type="DDIM", num_inference_steps=SAMPLING_STEPS,
        optimizer_lr=LEARNING_RATE, device="cpu", push_to_hub=False,
    )  # fmt: skip
    policy: Any = make_policy(cfg=config, ds_meta=meta)
    before, after = make_pre_post_processors(policy_cfg=config, dataset_stats=meta.stats)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    scheduler = config.get_scheduler_preset().build(optimizer, steps)
    windows = _Windows(root, config)
    policy.train()
    for step in range(steps):
        loss, _ = policy.forward(before(windows.batch(BATCH)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        if step % 500 == 0:
            sys.stderr.write(f"step {step}: loss {loss.item():.4f}\n")
    policy.eval()
    for part in (policy, before, after):
        part.save_pretrained(out)


class _Windows:
    """Batches as LeRobot's data loader would give them, from columns in memory."""

    def __init__(self, root: Path, config: Any) -> None:
        import pyarrow.parquet as parquet

        table = parquet.read_table(sorted(root.glob("data/**/*.parquet")))
        keys = [*config.input_features, "action"]
        self.columns = {key: torch.as_tensor(np.stack(table[key].to_numpy())) for key in keys}
        episode = table["episode_index"].to_numpy()
        _, first, number, count = np.unique(episode, return_index=True, return_inverse=True, return_counts=True)
        self.first, self.last = torch.as_tensor(first[number]), torch.as_tensor((first + count - 1)[number])
        self.usable = torch.nonzero(torch.arange(len(episode)) <= self.last - config.drop_n_last_frames).flatten()
        self.seen, self.planned = torch.tensor(config.observation_delta_indices), torch.tensor(config.action_delta_indices)

    def batch(self, size: int) -> dict[str, Any]:
        """{key: (B, To, D), "action": (B, H, A), "action_is_pad": (B, H)}."""
        rows = self.usable[torch.randint(len(self.usable), (size,))]
        told: dict[str, Any] = {key: column[self._at(rows, self.seen)] for key, column in self.columns.items() if key != "action"}
        wanted = rows[:, None] + self.planned
        told |= {"action": self.columns["action"][self._at(rows, self.planned)], "task": [""] * size}
        told["action_is_pad"] = (wanted < self.first[rows, None]) | (wanted > self.last[rows, None])
        return told

    def _at(self, rows: Tensor, steps: Tensor) -> Tensor:
        """Frames (B, K) at steps from rows, held at the episode's ends."""
        return (rows[:, None] + steps).clamp(self.first[rows, None], self.last[rows, None])


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, to, *numbers = sys.argv[1:]
    train(Path(where), Path(to), *map(int, numbers))
