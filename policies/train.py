"""Supervised training of any policy on any dataset: resumes exactly, runs alone or under torchrun."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.base import WEIGHT, PolicyModule
from policies.batches import Windows, check_horizon
from policies.checkpoint import save
from policies.ema import Ema
from policies.goals import goal_settings
from policies.language import to_device
from policies.parallel import Group, own_device, process_group
from policies.randomness import generator, mix
from policies.train_state import restore, save_state, trainable, trim_metrics
from sinew.config import to_json
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import EpisodeData, Loss
from sinew.rundir import RunDir
from sinew.specs import check_action_join, check_observation_join

TIMES = ("load_s", "preprocess_s", "update_s")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of supervised training."""

    steps: int = 5000
    """Optimiser steps."""
    batch_size: int = 256
    """Samples per step, over all processes together."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; cosine to zero after the warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 1e-6
    """Decoupled weight decay of weight matrices and kernels; biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's moments."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    ema_decay: float = 0.999
    """Decay of the averaged parameters, which become the policy."""
    early_share: float = 0.0
    """Share of each batch that is drawn from the beginnings of episodes, see `policies.batches.Beginnings`."""
    pool_mb: int = 0
    """Megabytes for pools of frames that are read in a row and shuffled, for data larger than memory whose single frames are
    slow to reach; 0 to draw every frame from everywhere."""
    shard_frames: int = 32
    """Frames that are read in a row where there are pools."""
    seed: int = 0
    """Fixes the order of samples, times, noise and augmentation."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"training {name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.ema_decay < 1:
            raise InputError(f"learning_rate {self.learning_rate} must be above 0 and finite, and ema_decay {self.ema_decay} in [0, 1)")
        if min(self.warmup_steps, self.weight_decay, self.gradient_clip) < 0:
            raise InputError("warmup_steps, weight_decay and gradient_clip must not be negative")
        if self.pool_mb < 0 or self.shard_frames < 1:
            raise InputError(f"pool_mb {self.pool_mb} must not be negative, shard_frames {self.shard_frames} must be at least 1")
        if not 0 <= self.early_share <= 1:
            raise InputError(f"early_share {self.early_share} is a share of the batch: 0 to 1")


def train(
    policy: PolicyModule,
    data: EpisodeData,
    run: RunDir,
    config: TrainConfig,
    progress: Progress = SILENT,
    device: torch.device | str = "cpu",
    weights: np.ndarray | None = None,
    draw: np.ndarray | None = None,
) -> PolicyModule:
    """Train `policy` in place and save it; goes on where an earlier call for the same run was stopped.

    Every random number of step k is a function of (config.seed, k), and the state is written in one piece, so a run
    that was killed and resumed takes the same steps as one that was not. Under torchrun each process takes its share
    of the same batches and gradients are averaged: P processes train as one does. Ctrl-C ends the current step, writes
    a checkpoint and raises KeyboardInterrupt.

    Args:
        policy: fresh from `policies.make`; made the same way again for resuming.
        data: demonstrations; their specs must fit the policy's.
        run: receives metrics.jsonl, train_state.*, policy.*.
        config: settings.
        progress: told every step, with the loss.
        device: where to train.
        weights: (frames,) how much each frame's window counts, relative to the others; None for all alike.
        draw: (frames,) how often each frame's window is drawn, relative to the others; None for all alike.

    Returns:
        `policy` (what it calls its product) with averaged parameters, in evaluation mode, on the CPU; saved in `run`.

    Raises:
        SpecError: dataset and policy do not fit.
        DataError: the loss is not finite (the samples are named), or the saved state is damaged.
        InputError: the run was trained with other settings or weights, the horizon is longer than every episode, the batch
            does not divide over the processes, or weights are negative, not finite or too few.
    """
    check_observation_join("the dataset", data.observation_spec, "the policy", policy.spec.observation)
    check_action_join("the dataset", data.action_spec, "the policy", policy.spec.action)
    check_horizon(data, policy.spec.horizon)
    device = own_device(device)
    with process_group(device) as group, torch.random.fork_rng(devices=[]):
        _Training(policy.to(device), data, run, config, progress, device, group, weights, draw).run()
        group.barrier()
    return policy.cpu().eval().product()


class _Training:
    """One training run, from its last checkpoint to its end."""

    def __init__(
        self,
        policy: PolicyModule,
        data: EpisodeData,
        run: RunDir,
        config: TrainConfig,
        progress: Progress,
        device: torch.device,
        group: Group,
        weights: np.ndarray | None = None,
        draw: np.ndarray | None = None,
    ) -> None:
        self.policy, self.folder, self.config, self.device, self.group = policy, run, config, device, group
        self.progress = progress if group.leads else SILENT
        self.parameters = list(trainable(policy).values())
        if not self.parameters:
            raise InputError(f"{type(policy).__name__} has no parameters to train: its base is frozen")
        self.optimizer = _optimizer(self.parameters, config, device)
        self.ema = Ema(self.parameters, config.ema_decay)
        group.equalize([t for t in policy.state_dict().values()])
        self.described = {**to_json(config), "frames": len(data), "episodes": data.num_episodes}
        if not config.early_share:  # runs from before there was such a share go on
            del self.described["early_share"]
        if not config.pool_mb:  # so do those from before there were pools
            del self.described["pool_mb"], self.described["shard_frames"]
        for name, values in (("weights", weights), ("draw", draw)):
            if values is not None:
                self.described[name] = hashlib.sha256(np.ascontiguousarray(values, np.float64).tobytes()).hexdigest()
        record = restore(run, policy, self.optimizer, self.ema, self.described) or {"step": 0, "loss_smooth": None}
        if record["step"] == 0:
            self.ema = Ema(self.parameters, config.ema_decay)
        self.step: int = record["step"]
        self.loss_smooth: float | None = record["loss_smooth"]
        self.windows = Windows(
            data, policy.spec, config.batch_size, config.seed, group, self.progress,
            weights=weights, goal=goal_settings(policy.product()), early_share=config.early_share, draw=draw,
            pool_bytes=config.pool_mb << 20 or None, shard_frames=config.shard_frames,
        )  # fmt: skip
        self.times, self.timed = dict.fromkeys(TIMES, 0.0), 0

    def run(self) -> None:
        """Take the remaining steps, then put the averaged parameters into the policy and save it."""
        config = self.config
        if self.group.leads:
            trim_metrics(self.folder, "train", self.step)
        self.progress.start("train", config.steps, self.step)
        if self.step == config.steps:
            self._checkpoint()  # a run that was stopped between its last state and its policy
        self.policy.train()
        with _interrupts() as interrupted:
            mark = time.perf_counter()
            for indices, batch in self.windows(self.step, config.steps):
                stop = self._advance(indices, batch, mark, interrupted.is_set())
                if self.step % config.checkpoint_every == 0 or stop or self.step == config.steps:
                    self._checkpoint()
                if stop:
                    raise KeyboardInterrupt
                mark = time.perf_counter()
        self.ema.swap()

    def _advance(self, indices: np.ndarray, batch: dict[str, Any], mark: float, stop: bool) -> bool:
        """One step; True when any process was asked to stop."""
        loaded = time.perf_counter()
        batch, draws = self._prepare(batch)
        prepared = time.perf_counter()
        value, stop = self._update(indices, batch, draws, stop)
        self.step += 1
        done = time.perf_counter()
        for name, spent in zip(TIMES, (loaded - mark, prepared - loaded, done - prepared), strict=True):
            self.times[name] += spent
        self.timed += 1
        self.loss_smooth = value if self.loss_smooth is None else 0.98 * self.loss_smooth + 0.02 * value
        self.progress.advance(1, loss=self.loss_smooth, **self._means())
        if self.group.leads and self.step % self.config.log_every == 0:
            self._log(value)
        return stop

    def _prepare(self, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """This process's share of the step's random numbers, and the batch augmented with them."""
        _seed_dropout(mix(self.config.seed, self.step, self.group.rank + 2), self.device)
        draws = self.policy.draw(self.config.batch_size, generator(self.config.seed, self.step, 1))
        draws = {key: value[self.windows.share].to(self.device) for key, value in draws.items()}
        return self.policy.augment(to_device(batch, self.device), draws), draws

    def _update(self, indices: np.ndarray, batch: dict[str, Any], draws: Mapping[str, Tensor], stop: bool) -> tuple[float, bool]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.optimizer.zero_grad()
        loss = self.policy.loss(batch, t=draws.get("t"), noise=draws.get("noise"))
        scalar = loss.scalar * self._share(batch)
        scalar.backward()
        gradients = [p.grad if p.grad is not None else p.new_zeros(p.shape) for p in self.parameters]
        told = self.group.average(gradients, torch.stack([scalar.detach().float(), torch.tensor(float(stop), device=self.device)]))
        value, stopping = told.tolist()
        if not math.isfinite(value):
            raise _not_finite(self.step, indices, batch, loss)
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        self.optimizer.step()
        self.ema.update()
        self.policy.after_update()
        return value, stopping > 0

    def _share(self, batch: Mapping[str, Any]) -> Tensor | float:
        """How much this process's part of a weighted batch counts, 1 on average: its loss is relative to its own weights."""
        if WEIGHT not in batch or self.group.size == 1:
            return 1.0
        own = batch[WEIGHT].float().sum()
        mean = self.group.average([], own.unsqueeze(0))[0]
        return own / mean.clamp(min=torch.finfo(mean.dtype).tiny)

    def _means(self) -> dict[str, float]:
        """Seconds of a step spent on loading, preparing and updating, and samples per second, since the last line of the log."""
        means = {name: spent / self.timed for name, spent in self.times.items()}
        return {**means, "samples_per_s": self.config.batch_size / max(sum(means.values()), 1e-9)}

    def _log(self, value: float) -> None:
        self.folder.log(
            stage="train",
            step=self.step,
            loss=value,
            loss_smooth=self.loss_smooth,
            learning_rate=learning_rate(self.config, self.step - 1),
            **self._means(),
        )
        self.times, self.timed = dict.fromkeys(TIMES, 0.0), 0

    def _checkpoint(self) -> None:
        """Write the state to go on from, then the policy as it would be were this the end."""
        if not self.group.leads:
            return
        record = {
            "step": self.step,
            "samples_seen": self.step * self.config.batch_size,
            "loss_smooth": self.loss_smooth,
            "config": self.described,
        }
        save_state(self.folder, self.policy, self.optimizer, self.ema, record)
        self.ema.swap()
        try:
            save(self.policy.product(), self.folder)
        finally:
            self.ema.swap()


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what layers draw from by themselves. torch.manual_seed would note a stack trace for a CUDA that is not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step number `step`: linear warm-up to the peak, then half a cosine to zero at config.steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas,
                             fused=device.type in ("cpu", "cuda"))


def _not_finite(step: int, indices: np.ndarray, batch: Mapping[str, Any], loss: Loss) -> DataError:
    """Error for a loss that is not finite, naming the frames whose samples are at fault."""
    bad = indices[~torch.isfinite(loss.per_sample.detach()).cpu().numpy()]
    if len(bad) == 0:
        return DataError(f"the loss is not finite at step {step}, in the samples of another process")
    broken = sorted({k for k, v in batch.items() if isinstance(v, Tensor) and v.is_floating_point() and not torch.isfinite(v).all()})
    frames = ", ".join(map(str, bad[:8])) + (f", … ({len(bad)} of {len(indices)})" if len(bad) > 8 else "")
    cause = (f"{', '.join(broken)} not finite there: sinew data check names the episodes" if broken
             else "the data are finite, so training diverged: lower learning_rate")
    return DataError(f"the loss is not finite at step {step} for dataset frames {frames}; {cause}")


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of raising; a second Ctrl-C raises at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handle(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
