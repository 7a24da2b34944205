"""The peer of `sinew bench policies`: run by the Python of a venv with lerobot, it samples and trains LeRobot's DiffusionPolicy.

It reads one JSON object a line, {"do": "make" | "sample" | "train", ...}, and answers each with one line, so that ours and the
peer can take turns. Times are CPU milliseconds on one thread. The policy comes from LeRobot's own factories, the training step is
the body of `lerobot_train.train`: preprocessor, then `update_policy` with the optimiser and scheduler of the policy's preset.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from importlib import metadata
from typing import Any

import torch

HORIZON, N_OBS_STEPS = 16, 2
"""LeRobot's defaults."""


class Peer:
    """A DiffusionPolicy of lerobot and everything that trains it."""

    def __init__(self) -> None:
        self.policy: Any = None
        self.batches: Any = None

    def make(self, folder: str, dims: list[int], batch: int, steps: int) -> dict[str, Any]:
        """Policy of U-Net widths `dims` for the dataset in `folder`; training is set up where batch > 0.

        Returns:
            {"parameters", "lerobot", "torch"}.
        """
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata  # pyright: ignore[reportMissingImports]
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # pyright: ignore[reportMissingImports]
        from lerobot.policies.factory import make_policy  # pyright: ignore[reportMissingImports]

        meta = LeRobotDatasetMetadata("local/bench", root=folder)
        config = DiffusionConfig(
            down_dims=tuple(dims), horizon=HORIZON, n_obs_steps=N_OBS_STEPS, noise_scheduler_type="DDIM", num_inference_steps=steps,
            device="cpu", push_to_hub=False,
        )  # fmt: skip
        self.batches = None
        self.policy = make_policy(cfg=config, ds_meta=meta).eval()
        if batch:
            seconds = {"action": config.action_delta_indices, **dict.fromkeys(self.observed(), config.observation_delta_indices)}
            deltas = {key: [k / meta.fps for k in steps] for key, steps in seconds.items()}
            self._set_up(LeRobotDataset("local/bench", root=folder, delta_timestamps=deltas), config, batch)
        count = sum(p.numel() for p in self.policy.parameters())
        return {"parameters": count, "lerobot": metadata.version("lerobot"), "torch": metadata.version("torch")}

    def observed(self) -> tuple[str, ...]:
        """Keys of the observation."""
        return tuple(self.policy.config.input_features)

    def _set_up(self, dataset: Any, config: Any, batch: int) -> None:
        from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
        from lerobot.datasets.utils import cycle  # pyright: ignore[reportMissingImports]
        from lerobot.policies.factory import make_pre_post_processors  # pyright: ignore[reportMissingImports]
        from lerobot.utils.logging_utils import AverageMeter, MetricsTracker  # pyright: ignore[reportMissingImports]

        self.accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=True)
        self.preprocessor, _ = make_pre_post_processors(policy_cfg=config, dataset_stats=dataset.meta.stats)
        preset = config.get_optimizer_preset()
        optimizer = preset.build(self.policy.get_optim_params())
        scheduler = config.get_scheduler_preset().build(optimizer, 1000)
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=0, drop_last=True)
        self.policy, self.optimizer, loader, self.scheduler = self.accelerator.prepare(self.policy, optimizer, loader, scheduler)
        self.clip = preset.grad_clip_norm
        self.batches = cycle(loader)
        self.kept = [next(self.batches) for _ in range(2)]
        meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
        self.tracker = MetricsTracker(batch, dataset.num_frames, dataset.num_episodes, meters, accelerator=self.accelerator)

    def sample(self, calls: int) -> dict[str, Any]:
        """Chunks for one observation, without processors and queues."""
        shapes = {key: feature.shape for key, feature in self.policy.config.input_features.items()}
        obs = {key: torch.randn(1, N_OBS_STEPS, *shape) for key, shape in shapes.items()}
        noise = torch.randn(1, HORIZON, *self.policy.config.action_feature.shape)
        with torch.inference_mode():
            return {"ms": [_cpu_ms(lambda: self.policy.diffusion.generate_actions(obs, noise=noise)) for _ in range(calls)]}

    def train(self, iterations: int, loader: bool) -> dict[str, Any]:
        """Training steps, with batches from the data loader or with two that were loaded before."""
        from lerobot.scripts.lerobot_train import update_policy  # pyright: ignore[reportMissingImports]

        def step(k: int) -> None:
            batch = self.preprocessor(next(self.batches) if loader else dict(self.kept[k % 2]))
            update_policy(self.tracker, self.policy, batch, self.optimizer, self.clip, self.accelerator, lr_scheduler=self.scheduler)
            self.tracker.step()

        return {"ms": [_cpu_ms(lambda k=k: step(k)) for k in range(iterations)]}


def _cpu_ms(function: Any) -> float:
    started = time.process_time_ns()
    function()
    return (time.process_time_ns() - started) / 1e6


def main() -> None:
    """Answer until the input ends; whatever the libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peer = Peer()
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(getattr(peer, asked.pop("do"))(**asked)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
