"""Distilling: a one-step policy is taught to land where many steps of a denoiser land.

The teacher is seen through the exchange form alone, `denoise` and `sigmas`, so that it may be of any family, mixed of
several, or guided by a goal. Two forms:

- "rl100": the teacher samples in its own steps, and jumps from points of that path are regressed on where it went.
- "ctm": from noised demonstrations; the teacher's solver goes part of the way, and a slow copy of the student the rest.

Source: RL-100, Lei et al. 2025, arXiv:2510.14830 (the first form); Kim et al. 2023, arXiv:2310.02279, and as a policy
Prasad et al. 2024, arXiv:2405.07503 (the second).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, capability, per_chunk, require, weighted_loss
from policies.consistency import ConsistencyConfig, ConsistencyPolicy, wide
from policies.denoising import DenoisingPolicy
from policies.flow import FlowConfig, FlowPolicy
from policies.sampling import sigma_to_time, time_to_sigma
from policies.train_state import trainable
from sinew.errors import InputError, SpecError
from sinew.protocols import Loss
from sinew.specs import ACTION

FORMS = ("rl100", "ctm")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Settings of distilling."""

    form: Literal["rl100", "ctm"] = "rl100"
    """What the student is taught; see the module."""
    steps: int = 1
    """Jumps in which the student will sample."""
    teacher_steps: int = 10
    """Steps of the teacher's sample, which the student is to equal."""
    start_share: float = 0.5
    """Share of jumps that start at the noisiest level, where sampling starts."""
    solver_steps: int = 2
    """ctm: steps of Heun's method that the teacher takes at most, in one training sample."""
    target_decay: float = 0.99
    """ctm: decay of the slow copy of the student."""
    denoising: float = 1.0
    """ctm: weight of the student's own denoising loss on the demonstrations."""
    encoder: Literal["frozen", "trained"] = "frozen"
    """Whether the teacher's image or language encoder is taken over as it is, or trained further."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"distilling form {self.form!r} is unknown: known are {', '.join(FORMS)}")
        for name in ("steps", "teacher_steps", "solver_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"distilling {name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.start_share <= 1 or not 0 <= self.target_decay < 1 or not self.denoising >= 0:
            raise InputError(f"distilling needs start_share in [0, 1], target_decay in [0, 1) and denoising not negative; given "
                             f"{self.start_share}, {self.target_decay} and {self.denoising}")


class Distilling(PolicyModule):
    """A student in training beside its teacher: what `policies.train.train` is given, which saves the student alone.

    Args:
        student: trained in place.
        teacher: with capability "denoise"; stays as it is.
        config: settings.

    Raises:
        SpecError: the teacher is no denoiser, or the two are made for different tasks.
    """

    Config = DistillConfig

    def __init__(self, student: ConsistencyPolicy, teacher: PolicyModule, config: DistillConfig) -> None:
        check_teacher(teacher)
        super().__init__(student.spec, config)
        self.student = student
        self.teacher: Any = teacher.requires_grad_(False).eval()
        self.target: ConsistencyPolicy | None = None
        if config.form == "ctm":
            kept = {id(p): p for p in student.parameters() if not p.requires_grad}
            self.target = copy.deepcopy(student, kept).requires_grad_(False)
        self.masked: bool = student.base.config.mask_padding

    def product(self) -> PolicyModule:
        """The student."""
        return self.student

    def train(self, mode: bool = True) -> Distilling:
        """Teacher and slow copy stay in evaluation mode."""
        super().train(mode)
        for still in (self.teacher, self.target):
            if still is not None:
                still.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What training changes, beside the student's other tensors: neither the teacher nor what the slow copy shares."""
        whole, moving = super().state_dict(*args, **kwargs), {f"target.{name}" for name in trainable(self.student)}
        return {name: tensor for name, tensor in whole.items() if name.startswith("student.") or name in moving}

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """The student's randomness."""
        return self.student.draw(rows, generator)

    def augment(self, batch: dict[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's augmentation; the teacher sees the same images."""
        return self.student.augment(batch, draws)

    @torch.no_grad()
    def after_update(self) -> None:
        """The slow copy moves a little towards the student."""
        if self.target is not None:
            slow = dict(self.target.named_parameters())
            for name, parameter in trainable(self.student).items():
                slow[name].lerp_(parameter, 1 - self.config.target_decay)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """The loss of the form; see the module.

        Args:
            batch: as for the student, with weights and padding mask.
            t: (B, 3) uniform numbers; drawn where None.
            noise: (B, H, A); drawn where None.
        """
        if t is None or noise is None:
            drawn = {k: v.to(batch[ACTION].device) for k, v in self.draw(batch[ACTION].shape[0]).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        if self.target is None:
            return self._follow(batch, t, noise)
        return self._meet(self.target, batch, t, noise)

    # ------------------------------------------------------------ on the teacher's own path

    def _follow(self, batch: Mapping[str, Tensor], t: Tensor, noise: Tensor) -> Loss:
        x, start, end, mean = self._path(batch, t, noise)
        form = self.student.form(start.unsqueeze(1))
        y = wide(form.scale) * x.unsqueeze(1)
        raw, _ = self.student.raw(y, form, end.unsqueeze(1), self.student.encode(batch))
        return weighted_loss(self.student.error(raw, mean.unsqueeze(1), y, form, batch), batch)

    @torch.no_grad()
    def _path(self, batch: Mapping[str, Tensor], t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Jumps along the teacher's samples from `noise`: x (B, H, A), levels (B,) of start and end, and the mean between them.

        A path x' = D + (x - D) r, with r the ratio of levels, leads over several steps to (1 - R) g + R x, with R the
        product of the r; (1 - R) g is summed along the way, without a difference of large numbers.
        """
        sigmas = self.teacher.sigmas(self.config.teacher_steps).to(noise)
        first, last = self._indices(t)
        ctx = self.teacher.encode(batch)
        x, kept, total, rest = sigmas[0] * noise, torch.zeros_like(noise), torch.zeros_like(noise), torch.ones_like(t[:, :1, None])
        for k, (sigma, following) in enumerate(pairwise(sigmas)):
            clean = self.teacher.denoise(x, sigma.expand(len(x)), ctx)
            ratio = following / sigma
            kept = torch.where((first == k)[:, None, None], x, kept)
            within = ((first <= k) & (k < last))[:, None, None]
            total = torch.where(within, total * ratio + clean * (1 - ratio), total)
            rest = torch.where(within, rest * ratio, rest)
            x = clean + (x - clean) * ratio
        return kept, sigmas[first], sigmas[last], total / (1 - rest)

    def _indices(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (B,) of the teacher at which jumps start and end; a student of one step learns jumps to the end only."""
        count, share = self.config.teacher_steps, self.config.start_share
        later = 1 + ((t[:, 0] - share) / max(1 - share, 1e-9) * (count - 1)).long()
        first = torch.where(t[:, 0] < share, 0, later).clamp(0, count - 1)
        if self.config.steps == 1:
            return first, torch.full_like(first, count)
        between = first + 1 + (t[:, 1] * (count - first)).long()
        return first, torch.where(t[:, 2] < 0.5, between.clamp(max=count), count)

    # ------------------------------------------------------------ consistency trajectories

    def _meet(self, target: ConsistencyPolicy, batch: Mapping[str, Tensor], t: Tensor, noise: Tensor) -> Loss:
        start, halt, end = (level.unsqueeze(1) for level in self.student.levels(t, self.config.start_share))
        action, zero = batch[ACTION], torch.zeros_like(end)
        x = (action + start[:, :, None] * noise).unsqueeze(1)
        with torch.no_grad():
            slow = target.encode(batch)
            first = self._solve(x, start, halt, batch)
            second, _ = target.mean(first + (x - first) * wide(halt / start), halt, end, slow)
            joined = first + (second - first) * wide((1 - end / halt) / (1 - end / start))
            there, _ = target.mean(joined + (x - joined) * wide(end / start), end, zero, slow)
        ctx, form = self.student.encode(batch), self.student.form(start)
        y = wide(form.scale) * x
        raw, _ = self.student.raw(y, form, end, ctx)
        mean = wide(form.skip) * y + wide(form.out) * raw
        here, _ = target.mean(mean + (x - mean) * wide(end / start), end, zero, slow)
        parts = {"consistency": per_chunk((here - there).squeeze(1).square().mean(-1), batch, self.masked)}
        if self.config.denoising:
            raw, _ = self.student.raw(y, form, start, ctx)
            parts["denoising"] = self.config.denoising * self.student.error(raw, action.unsqueeze(1), y, form, batch)
        return weighted_loss(torch.stack(list(parts.values())).sum(0), batch, {k: v.mean().detach() for k, v in parts.items()})

    def _solve(self, x: Tensor, start: Tensor, end: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean (B, 1, H, A) of the teacher's path from x (B, 1, H, A), level `start` (B, 1) to `end`, by Heun steps equal in time."""
        ctx, here = self.teacher.encode(batch), x.squeeze(1)
        count = self.config.solver_steps
        times = [torch.lerp(sigma_to_time(start), sigma_to_time(end), k / count).squeeze(1) for k in range(count + 1)]
        total, rest = torch.zeros_like(here), torch.ones_like(start).unsqueeze(-1)
        for time, following in pairwise(times):
            ratio = wide(time_to_sigma(following) / time_to_sigma(time))
            clean = self.teacher.denoise(here, time_to_sigma(time), ctx)
            ahead = self.teacher.denoise(clean + (here - clean) * ratio, time_to_sigma(following), ctx)
            clean = clean + 0.5 * (ahead - clean) * wide(time / following)  # the mean of both ends' slopes in time, as one estimate
            total, rest = total * ratio + clean * (1 - ratio), rest * ratio
            here = clean + (here - clean) * ratio
        return (total / (1 - rest)).unsqueeze(1)


def distilling(teacher: PolicyModule, config: DistillConfig, stats: Mapping[str, Mapping[str, np.ndarray]], seed: int = 0) -> Distilling:
    """A fresh student beside its teacher.

    The student starts with encoder, network and parametrisation of the teacher, or of the first denoiser that the teacher
    is composed of; without any, with a flow policy's network. A teacher that is guided to its goal passes on what it does,
    so that the student need not look twice.

    Args:
        teacher: policy with capability "denoise".
        config: settings.
        stats: of the training data, for a student that starts from nothing.
        seed: of its weights.

    Raises:
        SpecError: the teacher is no denoiser, or corrects its actions at every tick.
    """
    check_teacher(teacher)
    start = float(capability(teacher, "denoise").sigmas(1)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = _denoiser(teacher, teacher)
        if found is None:
            base: DenoisingPolicy = FlowPolicy.build(teacher.spec, stats, FlowConfig())
        else:
            frozen = {} if config.encoder == "trained" else {id(found.encoder): found.encoder}
            base = copy.deepcopy(found, frozen).requires_grad_(True)
            base.encoder.requires_grad_(config.encoder == "trained")
            if base.goal is not None:
                base.config = replace(base.config, goal=replace(base.config.goal, scale=1.0))
                base.goal.settings = base.config.goal
        differs = not math.isclose(start, float(base.levels(1)[0]), rel_tol=1e-4)
        settings = ConsistencyConfig(steps=config.steps, sigma_max=start if differs else None)
        return Distilling(ConsistencyPolicy(base, settings), teacher, config)


def check_teacher(teacher: PolicyModule) -> None:
    """Refuse a policy that cannot be distilled.

    Raises:
        SpecError: says what is missing.
    """
    require(teacher, "denoise", "distilling")
    if "correct" in teacher.spec.capabilities:
        raise SpecError(f"{type(teacher).__name__} corrects its actions at every tick, which a one-step policy does not: distil the run "
                        "that it was improved from, then improve that")


def _denoiser(policy: PolicyModule, teacher: PolicyModule) -> DenoisingPolicy | None:
    """`policy`, or the first denoiser inside it, that sees and does what the teacher does."""
    alike = all(getattr(policy.spec, f) == getattr(teacher.spec, f) for f in ("observation", "action", "horizon", "n_obs_steps"))
    if isinstance(policy, DenoisingPolicy) and alike:
        return policy
    return next((found for base in policy.bases() if (found := _denoiser(base, teacher)) is not None), None)
