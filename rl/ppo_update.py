"""The update of proximal policy optimisation, for a Gaussian policy whose spread does not depend on what is seen.

Nothing is read back from the device during an update, the step size that follows the divergence included, so that an update can be
recorded as a CUDA graph.

Source: PPO, Schulman et al. 2017, arXiv:1707.06347; step size by divergence as in rsl_rl, Rudin et al. 2021, arXiv:2109.11978.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from rl.checkpoint import load_module_state, load_optimizer_state, module_state, optimizer_state
from rl.critic import Critic
from rl.engine import EngineName
from rl.graph import GraphedUpdate
from rl.group import ALONE, Group
from rl.rollout import Rollout, advantages
from rl.running_norm import NormalisedActor
from rl.surrogate import SurrogateConfig, normalised, surrogate
from sinew.errors import InputError

METRICS = ("divergence", "clipped", "value_error", "gradient_norm", "learning_rate", "std")
FASTER = 1.5
"""By how much the step size grows or falls where the divergence is off."""


@dataclass(frozen=True, kw_only=True)
class PpoUpdateConfig:
    """Settings of an update."""

    learning_rate: float = 1e-3
    """Adam step size, at first where it follows the divergence."""
    target_divergence: float | None = 0.01
    """The step size falls where the mean divergence of a batch is above twice this, and grows where it is below half of it; None for a
    step size that stays."""
    lowest_rate: float = 1e-5
    """It falls no further …"""
    highest_rate: float = 3e-3
    """… and grows no further than this."""
    epochs: int = 5
    """How often a rollout is gone through."""
    batches: int = 4
    """Parts that it is cut into, each an update."""
    clip: float = 0.2
    """Ratios count within 1 - clip and 1 + clip."""
    value_clip: float | None = 0.2
    """Values count no further than this from what they were, where that is worse; None for all."""
    value_weight: float = 1.0
    """Of the value function's squared error."""
    entropy_weight: float = 0.002
    """Of the entropy, which keeps the spread from falling too soon."""
    gradient_norm: float = 1.0
    """Gradients are shortened to this norm."""
    engine: EngineName = "auto"
    """How updates are computed: autograd (auto), compile or, on a GPU, graph."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batches) < 1 or not 0 < self.clip < 1 or not 0 < self.lowest_rate <= self.highest_rate:
            raise InputError("PPO needs epochs and batches of at least 1, clip in (0, 1) and 0 < lowest_rate <= highest_rate")
        if self.target_divergence is not None and not self.target_divergence > 0:
            raise InputError(f"target_divergence {self.target_divergence} must be above 0; None keeps the step size as it is")


class GaussianActor(nn.Module):
    """Features → the likeliest action, and how far actions scatter around it.

    Args:
        mean: features (N, D) → actions (N, A) in [-1, 1], with its statistics.
        action_dim: A.
        std: spread at first.
    """

    def __init__(self, mean: NormalisedActor, action_dim: int, std: float) -> None:
        super().__init__()
        self.mean = mean
        device = next(mean.parameters()).device
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(std), device=device))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) → actions (N, A)."""
        return self.mean(features)


def log_density(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Logarithm (B,) of the density of actions u (B, A) around means (B, A)."""
    return (-0.5 * ((u - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def divergence(mean: Tensor, log_std: Tensor, old_mean: Tensor, old_log_std: Tensor) -> Tensor:
    """KL(old, new) (B,) of Gaussians around means (B, A) with spreads (A,)."""
    spread = (2 * (old_log_std - log_std)).exp() + ((old_mean - mean) / log_std.exp()).square()
    return (log_std - old_log_std + 0.5 * (spread - 1)).sum(-1)


@dataclass(frozen=True)
class Sample:
    """Steps to learn from, and what was known of them when they were made."""

    features: Tensor
    """(B, D)."""
    u: Tensor
    """(B, A) as drawn, before it was kept within bounds."""
    mean: Tensor
    """(B, A) around which it was drawn."""
    log_std: Tensor
    """(B, A), the same in all rows."""
    value: Tensor
    """(B,)."""
    gain: Tensor
    """(B,) normalised advantage."""
    wanted: Tensor
    """(B,) return."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Sample:
        """`function` applied to every tensor."""
        return Sample(*(function(getattr(self, f.name)) for f in fields(self)))


class PpoLearner:
    """Actor and value function, their optimiser, and a round of updates.

    Args:
        actor: trained in place.
        value: features → value; an ensemble of one.
        config: settings of the updates.
        gamma: discount per step.
        decay: lambda.
        group: learners that learn together.
    """

    def __init__(
        self, actor: GaussianActor, value: Critic, config: PpoUpdateConfig, gamma: float, decay: float, group: Group = ALONE
    ) -> None:
        self.actor, self.value, self.config, self.gamma, self.decay, self.group = actor, value, config, gamma, decay, group
        self.norm = actor.mean.norm
        self.parameters = [*actor.parameters(), *value.parameters()]
        device = self.parameters[0].device
        graphed = config.engine == "graph"
        if config.engine in ("loop", "loop_bf16") or (graphed and device.type != "cuda"):
            raise InputError(f"engine {config.engine!r} does not compute PPO on {device}: use autograd or compile")
        self.rate = torch.tensor(config.learning_rate, device=device)
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.rate, fused=True, capturable=graphed)
        self.surrogate = SurrogateConfig(clip=config.clip)
        self.updates = self.rounds = 0
        self._sums, self._counted = torch.zeros(len(METRICS), device=device), 0
        self._losses = torch.compile(self._loss, dynamic=False) if config.engine == "compile" else self._loss
        self._graph = GraphedUpdate[Sample](lambda sample, _: self._step(sample), torch.Generator(device)) if graphed else None

    # ------------------------------------------------------------ learning

    def learn(self, rollout: Rollout, generator: torch.Generator) -> None:
        """Go through a rollout that the actor, as it is, has made.

        Args:
            rollout: with frames "features" and "u".
            generator: of the order, on the device.
        """
        self.rounds += 1
        features = rollout.frames["features"].flatten(0, 1)
        if self.rounds > 1:
            whole = self.judged(rollout)
            size = len(features) // self.config.batches
            if not size:
                raise InputError(f"a rollout of {len(features)} steps cannot be cut into {self.config.batches} parts: more worlds or steps")
            for _ in range(self.config.epochs):
                order = torch.randperm(len(features), generator=generator, device=features.device)
                for rows in order[: size * self.config.batches].split(size):
                    self._update(whole.map(lambda x, rows=rows: x[rows]))
        self.norm.update(features, self.group)

    @torch.no_grad()
    def judged(self, rollout: Rollout) -> Sample:
        """All steps of a rollout, (T N,) in the order of time, with their advantages by the value function as it is."""
        features = rollout.frames["features"]
        value = self._value(features.flatten(0, 1)).view(features.shape[:2])
        after = rollout.next_values(value, self._value(rollout.last["features"]), self._value(rollout.final["features"]))
        advantage, wanted = advantages(rollout.reward, value, after, rollout.terminated, rollout.ended, self.gamma, self.decay)
        u, flat = rollout.frames["u"].flatten(0, 1), features.flatten(0, 1)
        return Sample(
            features=flat, u=u, mean=self.actor(flat), log_std=self.actor.log_std.detach().expand_as(u).clone(), value=value.flatten(),
            gain=self._normalised(advantage.flatten()), wanted=wanted.flatten(),
        )  # fmt: skip

    def _value(self, features: Tensor) -> Tensor:
        return self.value(self.norm(features))[0]

    def _normalised(self, advantage: Tensor) -> Tensor:
        """By mean and spread over all learners."""
        if self.group.size == 1:
            return normalised(advantage)
        moments = torch.stack((advantage.mean(), advantage.square().mean()))
        self.group.average([moments])
        return (advantage - moments[0]) / (moments[1] - moments[0].square()).clamp(min=1e-12).sqrt()

    def _update(self, sample: Sample) -> None:
        self.updates += 1
        self._counted += 1
        if self._graph is None:
            self._step(sample)
        else:
            self._graph(sample, True)

    def _loss(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """What is minimised, and (3,) divergence, share of clipped ratios and squared error of values."""
        config, log_std = self.config, self.actor.log_std
        mean = self.actor(sample.features)
        old = log_density(sample.u, sample.mean, sample.log_std)
        made = surrogate(log_density(sample.u, mean, log_std)[:, None], old[:, None], sample.gain, sample.u.shape[1], self.surrogate)
        value = self._value(sample.features)
        error = (value - sample.wanted).square()
        if config.value_clip is not None:
            near = sample.value + (value - sample.value).clamp(-config.value_clip, config.value_clip)
            error = torch.maximum(error, (near - sample.wanted).square())
        loss = made.loss + config.value_weight * error.mean() - config.entropy_weight * log_std.sum()
        with torch.no_grad():
            apart = divergence(mean, log_std, sample.mean, sample.log_std).mean()
        return loss, torch.stack((apart, made.clipped, error.detach().mean()))

    def _step(self, sample: Sample) -> None:
        """One step of the optimiser; nothing is read back."""
        loss, told = self._losses(sample)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.group.average([*(p.grad for p in self.parameters if p.grad is not None), told])
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_norm)
        self._follow(told[0])
        self.optimizer.step()
        self._sums += torch.cat((told, torch.stack((norm, self.rate, self.actor.log_std.detach().exp().mean()))))

    def _follow(self, apart: Tensor) -> None:
        """The step size that a divergence () asks for."""
        config, wanted = self.config, self.config.target_divergence
        if wanted is not None:
            factor = torch.where(apart > 2 * wanted, 1 / FASTER, torch.where(apart < wanted / 2, FASTER, 1.0))
            self.rate.copy_((self.rate * factor).clamp(config.lowest_rate, config.highest_rate))

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call; the one place that waits for the device."""
        means = (self._sums / max(1, self._counted)).tolist()
        counted, self._counted = self._counted, 0
        self._sums.zero_()
        return dict(zip(METRICS, means, strict=True)) if counted else {}

    # ------------------------------------------------------------ saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and numbers that `load_state` needs."""
        tensors = {"rate": self.rate, "metric_sums": self._sums} | optimizer_state("optimizer", self.optimizer)
        for name, module in self._modules().items():
            tensors |= module_state(name, module)
        return tensors, {"updates": self.updates, "rounds": self.rounds, "counted": self._counted}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """Become the learner that `state` was taken from."""
        for name, module in self._modules().items():
            load_module_state(name, module, tensors)
        load_optimizer_state("optimizer", self.optimizer, tensors)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # the state holds a copy
        self.rate.copy_(tensors["rate"])
        self._sums.copy_(tensors["metric_sums"])
        self.updates, self.rounds, self._counted = (numbers[k] for k in ("updates", "rounds", "counted"))

    def _modules(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "value": self.value}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """None to be averaged from outside: gradients are before they are shortened."""
        return {}
