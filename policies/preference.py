"""Post-training of a flow or diffusion policy from preferences: of two chunks for one observation, more of the better one.

Source: Diffusion-DPO, Wallace et al. 2023, arXiv:2311.12908, as NORA-1.5, arXiv:2511.14659, uses it on a flow expert; with
the time and the noise of a pair shared by winner and loser, without which their difference is mostly luck.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional

from policies.base import PolicyModule, weighted_loss
from policies.batches import Windows, check_horizon
from policies.checkpoint import read_tensors, save
from policies.ema import Ema
from policies.language import select, to_device
from policies.parallel import Group
from policies.randomness import generator
from policies.train_state import restore, save_state, trainable, trim_metrics
from sinew.config import to_json
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.protocols import Chunk, EpisodeData, Loss
from sinew.rundir import RunDir, atomic_write
from sinew.specs import ACTION, TASK, check_action_join, check_observation_join

Scorer = Callable[[Chunk, Any], Tensor]
"""(chunk, context) → scores (B, n) of its candidates, higher is better."""
PAIRS_NAME = "pairs.safetensors"
_MADE = "sinew_pairs_made_with"


@dataclass(frozen=True, kw_only=True)
class PreferConfig:
    """Settings of preference training; the defaults are NORA-1.5's."""

    pairs: int = 1000
    """Observations for which candidates are sampled; each gives one pair."""
    candidates: int = 5
    """Chunks sampled per observation; the best and the worst of them make the pair."""
    beta: float = 500.0
    """How sharply a difference of losses is held to be a preference."""
    steps: int = 8000
    """Optimiser steps."""
    batch_size: int = 16
    """Pairs per step."""
    learning_rate: float = 5e-7
    """Learning rate of AdamW, constant after the warm-up."""
    warmup_steps: int = 150
    """Steps over which the learning rate rises from zero."""
    freeze_encoder: bool = True
    """Leave the encoder of observations as it is and train what acts on it."""
    seed: int = 0
    """Fixes observations, candidates, times and noise."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("pairs", "steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"preference {name} must be at least 1, not {getattr(self, name)}")
        if self.candidates < 2:
            raise InputError(f"preferences need at least 2 candidates per observation, not {self.candidates}")
        if self.beta <= 0 or self.learning_rate <= 0 or self.warmup_steps < 0:
            raise InputError("preference beta and learning_rate must be above 0, warmup_steps not negative")


def frozen_copy(policy: PolicyModule) -> PolicyModule:
    """The reference: a copy that never changes. Parts without anything to train are shared, not copied."""
    shared = {id(m): m for m in policy.modules() if m is not policy and not any(p.requires_grad for p in m.parameters())}
    return copy.deepcopy(policy, shared).requires_grad_(False).eval()  # type: ignore[arg-type]


def preference_loss(
    policy: PolicyModule, reference: PolicyModule, batch: Mapping[str, Any], *, beta: float, t: Tensor, noise: Tensor
) -> Loss:
    """-log sigmoid(-beta / 2 * ((w - l) - (w_ref - l_ref))) of the denoising losses w, l of winner and loser.

    Args:
        policy: to be trained.
        reference: its frozen copy from before.
        batch: {key: (B, To, ...)}, "winner" and "loser" (B, H, A) in [-1, 1], "weight" (B,) or none.
        beta: sharpness.
        t: (B,) times, the same for winner, loser, policy and reference.
        noise: (B, H, A), likewise.

    Returns:
        Loss with logs "accuracy" (share of pairs in which the policy prefers the winner more than the reference does) and "margin".
    """
    winner, loser = pair_losses(policy, batch, t, noise)
    with torch.no_grad():
        winner_before, loser_before = pair_losses(reference, batch, t, noise)
    margin = (winner - loser) - (winner_before - loser_before)
    logs = {"accuracy": (margin < 0).float().mean().detach(), "margin": margin.mean().detach()}
    return weighted_loss(-functional.logsigmoid(-0.5 * beta * margin), batch, logs)


def pair_losses(policy: PolicyModule, batch: Mapping[str, Any], t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Denoising losses (B,) of winner and loser at the same times and noise; one encoding serves both where the policy can."""
    chunks = torch.stack([batch["winner"], batch["loser"]], dim=1)
    given: Any = policy
    if hasattr(given, "flow_losses"):
        ctx = given.encode(batch)
        both = given.flow_losses(ctx, {ACTION: chunks}, t.unsqueeze(1).expand(-1, 2), noise.unsqueeze(1).expand_as(chunks))
        return both[:, 0], both[:, 1]
    twice = select({key: batch[key] for key in batch if key in (*policy.spec.observation, TASK)}, np.arange(2 * len(chunks)) // 2)
    both = given.loss({**twice, ACTION: chunks.flatten(0, 1)}, t=t.repeat_interleave(2), noise=noise.repeat_interleave(2, 0)).per_sample
    return both[0::2], both[1::2]


def prefer(
    policy: PolicyModule,
    data: EpisodeData,
    scorer: Scorer,
    run: RunDir,
    config: PreferConfig,
    progress: Progress = SILENT,
    device: torch.device | str = "cpu",
) -> PolicyModule:
    """Post-train `policy` in place on preferences among its own candidates, and save it.

    The pairs are made once, kept in the run, and learned from against a frozen copy of the policy as it was given. A run
    that was stopped goes on at its last checkpoint when it is called again with the policy as it was at first.

    Args:
        policy: trained already; its `loss` takes times and noise from outside.
        data: gives the observations; its actions are not looked at.
        scorer: a reward, a world model, a value function; see `Scorer`.
        run: receives pairs.safetensors, metrics.jsonl, train_state.*, policy.*.
        config: settings.
        progress: told every step.
        device: where to train.

    Returns:
        `policy` in evaluation mode, on the CPU; saved in `run`.

    Raises:
        SpecError: dataset and policy do not fit.
        DataError: a score or the loss is not finite, or what the run holds is damaged.
        InputError: the run was made with other settings, or the horizon is longer than every episode.
    """
    check_observation_join("the dataset", data.observation_spec, "the policy", policy.spec.observation)
    check_action_join("the dataset", data.action_spec, "the policy", policy.spec.action)
    check_horizon(data, policy.spec.horizon)
    device = torch.device(device)
    policy.to(device).eval()
    if config.freeze_encoder and isinstance(getattr(policy, "encoder", None), nn.Module):
        policy.encoder.requires_grad_(False)  # type: ignore[union-attr]
    parameters = list(trainable(policy).values())
    if not parameters:
        raise InputError(f"{type(policy).__name__} has no parameters to train: all of it is frozen")
    frames, windows = pair_windows(policy, data, config, progress)
    pairs = _kept_pairs(policy, windows, frames, scorer, config, run, progress, device)
    reference = frozen_copy(policy)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=device.type in ("cpu", "cuda"))
    raw = Ema(parameters, 0.0)
    described = {**to_json(config), "frames": len(data)}
    record = restore(run, policy, optimizer, raw, described) or {"step": 0}
    trim_metrics(run, "prefer", record["step"])
    if record["step"] == config.steps:
        save(policy, run)  # a run that was stopped between its last state and its policy
    progress.start("prefer", config.steps, record["step"])
    for step, (rows, batch) in enumerate(windows(record["step"], config.steps), record["step"]):
        batch = to_device({**batch, **{key: pairs[key][torch.from_numpy(rows)] for key in ("winner", "loser")}}, device)
        loss = _update(policy, reference, batch, optimizer, config, step)
        progress.advance(1, loss=loss.scalar.item())
        if (step + 1) % config.log_every == 0:
            run.log(stage="prefer", step=step + 1, loss=loss.scalar.item(), **{k: v.item() for k, v in loss.logs.items()})
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            raw.update()
            save_state(run, policy, optimizer, raw, {"step": step + 1, "config": described})
            save(policy, run)
    return policy.cpu()


def _update(
    policy: PolicyModule, reference: PolicyModule, batch: dict[str, Any], optimizer: torch.optim.Optimizer, config: PreferConfig, step: int
) -> Loss:
    """One optimiser step; times and noise are functions of the seed and the step."""
    rows = len(batch["winner"])
    drawn = to_device(policy.draw(rows, generator(config.seed, step, 5)), batch["winner"].device)
    loss = preference_loss(policy, reference, batch, beta=config.beta, t=drawn["t"], noise=drawn["noise"])
    if not torch.isfinite(loss.scalar):
        raise DataError(f"the preference loss is not finite at step {step}: lower learning_rate or beta")
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    optimizer.zero_grad()
    loss.scalar.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    policy.after_update()
    return loss


# ---------------------------------------------------------------- pairs


def pair_windows(policy: PolicyModule, data: EpisodeData, config: PreferConfig, progress: Progress = SILENT) -> tuple[np.ndarray, Windows]:
    """The frames (pairs,) of a dataset that pairs are made for, and their windows: functions of the settings and its length."""
    frames = np.sort(np.random.default_rng(config.seed).permutation(len(data))[: min(config.pairs, len(data))])
    return frames, Windows(_Frames(data, frames), policy.spec, config.batch_size, config.seed, Group(), progress)


def write_pairs(run: RunDir, pairs: Mapping[str, Tensor], frames: np.ndarray, config: PreferConfig) -> None:
    """Keep the pairs of `frames` in a run, where `prefer` with the same settings finds them."""
    atomic_write(run / PAIRS_NAME, to_bytes({**pairs, "frame": torch.from_numpy(frames)}, {_MADE: _made_with(config)}))


def _made_with(config: PreferConfig) -> str:
    return json.dumps({name: getattr(config, name) for name in ("seed", "candidates", "batch_size")})


def make_pairs(
    policy: PolicyModule, windows: Windows, scorer: Scorer, config: PreferConfig, device: torch.device, progress: Progress = SILENT
) -> dict[str, Tensor]:
    """Winners and losers among the policy's own candidates, for every window.

    Returns:
        "winner" and "loser" (pairs, H, A), "gap" (pairs,), the difference of their scores.

    Raises:
        DataError: the scores are not one finite number per candidate.
    """
    count, spec = len(windows.data), policy.spec
    pairs = {key: torch.empty(count, spec.horizon, spec.action_dim) for key in ("winner", "loser")}
    pairs["gap"] = torch.empty(count)
    progress.start("pairs", count)
    for step, (rows, batch) in enumerate(windows(0, -(-count // config.batch_size))):
        batch = to_device(batch, device)
        shape = (len(rows), config.candidates)
        with torch.no_grad():
            ctx = policy.encode({key: batch[key] for key in batch if key not in (ACTION, "action_is_pad")})
            noise = torch.randn(*shape, *spec.noise_shape, generator=generator(config.seed, step, 4)).to(device)
            chunk = policy.sample(ctx, n=config.candidates, noise=noise)
            scores = scorer(chunk, ctx)
        if tuple(scores.shape) != shape or not torch.isfinite(scores).all():
            raise DataError(f"the scorer gave a tensor of shape {tuple(scores.shape)}: one finite score per candidate, {shape}, is needed")
        where, each = torch.from_numpy(rows), torch.arange(len(rows), device=device)
        best, worst = scores.argmax(1), scores.argmin(1)
        pairs["winner"][where] = chunk.actions[each, best].cpu()
        pairs["loser"][where] = chunk.actions[each, worst].cpu()
        pairs["gap"][where] = (scores[each, best] - scores[each, worst]).cpu().float()
        progress.advance(len(rows))
    return pairs


def _kept_pairs(
    policy: PolicyModule,
    windows: Windows,
    frames: np.ndarray,
    scorer: Scorer,
    config: PreferConfig,
    run: RunDir,
    progress: Progress,
    device: torch.device,
) -> dict[str, Tensor]:
    """The pairs of a run: made at first, read when it goes on."""
    path = run / PAIRS_NAME
    if not path.exists():
        pairs = make_pairs(policy, windows, scorer, config, device, progress)
        write_pairs(run, pairs, frames, config)
        return pairs
    kept, metadata = read_tensors(path)
    if metadata.get(_MADE) != _made_with(config) or "frame" not in kept or not np.array_equal(kept["frame"].numpy(), frames):
        raise InputError(f"{path} holds pairs of other data, or made with another seed or other candidates: choose another run")
    return kept


class _Frames:
    """Some frames of a dataset, as a dataset."""

    def __init__(self, data: EpisodeData, frames: np.ndarray) -> None:
        self.data, self.frames = data, frames
        self.observation_spec, self.action_spec, self.num_episodes = data.observation_spec, data.action_spec, data.num_episodes
        self.tasks = getattr(data, "tasks", ())

    def __len__(self) -> int:
        return len(self.frames)

    def stats(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        return self.data.stats()

    def column(self, name: str) -> np.ndarray:
        given: Any = self.data
        return given.column(name)[self.frames]

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        return self.data.window(self.frames[indices], n_obs_steps, horizon, keys)
