"""Distilling: a one-step policy is taught to land where many steps of a denoiser land.

The teacher is seen through the exchange form alone, `denoise` and `sigmas`, so that it may be of any family, mixed of
several, or guided by a goal. Two forms:

- "rl100": the teacher samples in its own steps, and jumps from points of that path are regressed on where it went.
- "ctm": from noised demonstrations; the teacher goes some of its steps, and a slow copy of the student the rest.

Both teach the map of the teacher's own steps, not of the flow that those approximate: ten Euler steps narrow what is sampled
(by a fifth for a Gaussian of spread 0.25 from level 100), and success depends on it.

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
    start_share: float | None = None
    """Share of jumps that start at the noisiest level, where sampling starts. None: all for rl100 in one step, which never
    starts elsewhere, and half otherwise."""
    solver_steps: int = 5
    """ctm: how many of its own steps the teacher takes before the slow copy jumps on."""
    target_decay: float = 0.95
    """ctm: decay of the slow copy of the student."""
    denoising: float = 0.0
    """ctm: weight of the student's own denoising loss on the demonstrations, 1 as published. It is some thirty times the
    other term, and draws the student from its teacher to the data."""
    encoder: Literal["frozen", "trained"] = "frozen"
    """Whether the teacher's image or language encoder is taken over as it is, or trained further."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"distilling form {self.form!r} is unknown: known are {', '.join(FORMS)}")
        for name in ("steps", "teacher_steps", "solver_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"distilling {name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.share <= 1 or not 0 <= self.target_decay < 1 or not self.denoising >= 0:
            raise InputError(f"distilling needs start_share in [0, 1], target_decay in [0, 1) and denoising not negative; given "
                             f"{self.share}, {self.target_decay} and {self.denoising}")

    @property
    def share(self) -> float:
        """`start_share`, or what stands for None."""
        if self.start_share is not None:
            return self.start_share
        return 1.0 if self.form == "rl100" and self.steps == 1 else 0.5


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
        count, share = self.config.teacher_steps, self.config.share
        later = 1 + ((t[:, 0] - share) / max(1 - share, 1e-9) * (count - 1)).long()
        first = torch.where(t[:, 0] < share, 0, later).clamp(0, count - 1)
        if self.config.steps == 1:
            return first, torch.full_like(first, count)
        between = first + 1 + (t[:, 1] * (count - first)).long()
        return first, torch.where(t[:, 2] < 0.5, between.clamp(max=count), count)

    # ------------------------------------------------------------ consistency trajectories

    def _meet(self, target: ConsistencyPolicy, batch: Mapping[str, Tensor], t: Tensor, noise: Tensor) -> Loss:
        x, start, halt, end, first = self._part(batch, t, noise)
        zero = torch.zeros_like(end)
        with torch.no_grad():
            slow = target.encode(batch)
            second, _ = target.mean(first + (x - first) * wide(halt / start), halt, end, slow)
            left = torch.where(halt > end, (1 - end / halt.clamp(min=1e-12)) / (1 - end / start), 0)
            joined = first + (second - first) * wide(left)
        ctx, form = self.student.encode(batch), self.student.form(start)
        y = wide(form.scale) * x
        raw, _ = self.student.raw(y, form, end, ctx)
        here, there = wide(form.skip) * y + wide(form.out) * raw, joined
        if self.config.steps > 1:  # compared where both lead; jumps of a single step end there
            here, _ = target.mean(here + (x - here) * wide(end / start), end, zero, slow)
            with torch.no_grad():
                there, _ = target.mean(joined + (x - joined) * wide(end / start), end, zero, slow)
        parts = {"consistency": per_chunk((here - there).squeeze(1).square().mean(-1), batch, self.masked)}
        if self.config.denoising:
            raw, _ = self.student.raw(y, form, start, ctx)
            parts["denoising"] = self.config.denoising * self.student.error(raw, batch[ACTION].unsqueeze(1), y, form, batch)
        return weighted_loss(torch.stack(list(parts.values())).sum(0), batch, {k: v.mean().detach() for k, v in parts.items()})

    @torch.no_grad()
    def _part(self, batch: Mapping[str, Tensor], t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """From noised demonstrations some of the teacher's own steps: x (B, 1, H, A), levels (B, 1) of start, halt and end of a
        jump, and the mean (B, 1, H, A) between start and halt.
        """
        sigmas = self.teacher.sigmas(self.config.teacher_steps).to(noise)
        first, last = self._indices(t)
        stop = torch.minimum(first + self.config.solver_steps, last)
        ctx, x = self.teacher.encode(batch), batch[ACTION] + sigmas[first, None, None] * noise
        here, total, rest = x, torch.zeros_like(noise), torch.ones_like(t[:, :1, None])
        for k in range(self.config.solver_steps):
            sigma, following = (sigmas[torch.minimum(first + ahead, stop)] for ahead in (k, k + 1))
            ratio = torch.where(sigma > 0, following / sigma.clamp(min=1e-12), 1)[:, None, None]  # 1 for those that have halted
            clean = self.teacher.denoise(here, sigma, ctx)
            total, rest = total * ratio + clean * (1 - ratio), rest * ratio
            here = clean + (here - clean) * ratio
        start, halt, end = (sigmas[index, None] for index in (first, stop, last))
        return x.unsqueeze(1), start, halt, end, (total / (1 - rest)).unsqueeze(1)


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
        SpecError: the teacher is no denoiser, corrects its actions at every tick, or cannot take that many steps.
    """
    check_teacher(teacher)
    capability(teacher, "denoise").sigmas(config.teacher_steps)  # refuses now more steps than it can take
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
