"""One off-policy update: critics towards a bootstrapped target, then the actor up the critics' values.

A method fills five slots: the replay it samples from, the actor, `decode` (what the actor's output does to the action), the
critic's head and the actor's objective. Nothing here waits for the device: no value is read back during an update.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rl.checkpoint import load_module_state, load_optimizer_state, module_state, optimizer_state
from rl.critic import Critic, polyak
from rl.engine import Engine, EngineName, Swapped, make_engine, resolve
from rl.graph import GraphedUpdate
from rl.heads import Backup, Reduce, reduce_values
from rl.replay import Batch
from sinew.errors import InputError

Frames = Mapping[str, Tensor]
Propose = Callable[[nn.Module, Frames], Tensor | tuple[Tensor, Tensor]]
"""(actor, frames) → u (B, U): what the actor puts out; a stochastic one also gives the log probability (B,) of its draw."""
Decode = Callable[[Frames, Tensor], Tensor]
"""(frames, u) → action (B, A) in [-1, 1] as it would be executed."""
CriticInput = Callable[[Frames, Tensor], Tensor]
"""(frames, action) → (B, D): what the critic looks at."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Settings of an update."""

    critic_lr: float = 3e-4
    """Adam step size of the critics."""
    actor_lr: float = 1e-4
    """Adam step size of the actor."""
    tau: float = 0.005
    """Share by which targets follow, per update."""
    actor_every: int = 2
    """Critic updates per actor update."""
    target_heads: int = 2
    """Target heads drawn at random for each update (REDQ); all if not fewer than the ensemble has."""
    target_reduce: Reduce = "min"
    """How the drawn target heads become one value."""
    actor_reduce: Reduce = "min"
    """How the heads become the value that the actor climbs."""
    target_low: float | None = 0.0
    """Targets are clipped from below; 0 for a sparse success reward, None for no clipping."""
    target_high: float | None = 1.0
    """Targets are clipped from above; 1 for a sparse success reward, None for no clipping."""
    smoothing_std: float = 0.1
    """Standard deviation of the noise on the target action, in units of the normalised action."""
    smoothing_clip: float = 0.3
    """That noise is clipped to plus or minus this."""
    output_l2: float = 0.1
    """Weight of the mean squared actor output in the actor's loss."""
    target_actor: bool = True
    """Whether targets ask a slow copy of the actor (TD3), or the actor itself (SAC)."""
    target_entropy: float | None = None
    """Entropy that a stochastic actor is held to by its temperature; None for no entropy at all."""
    temperature: float = 0.01
    """Temperature at the start."""
    temperature_lr: float = 3e-4
    """Adam step size of the temperature."""
    entropy_in_target: bool = False
    """Whether targets count the entropy; with sparse rewards it pays the actor for staying alive."""
    engine: EngineName = "auto"
    """How networks are computed: auto, loop, loop_bf16, autograd, compile, graph (`rl.engine`)."""

    def __post_init__(self) -> None:
        if self.actor_every < 1 or self.target_heads < 1 or not 0 < self.tau <= 1:
            raise InputError(
                f"actor_every {self.actor_every} and target_heads {self.target_heads} must be at least 1, tau {self.tau} in (0, 1]"
            )


def features_and_action(frames: Frames, action: Tensor) -> Tensor:
    """What critics usually look at, (B, D + A)."""
    return torch.cat((frames["features"], action), -1)


METRICS = ("loss", "q", "target", "actor_q", "output_rms")


class Judge:
    """What the actor climbs: the "actor objective" slot. The usual one asks the critics about the decoded action.

    Args:
        critic: the ensemble that is asked.
        engine: evaluates it.
        see: (frames, u) → its input (B, D), differentiable in u.
    """

    def __init__(self, critic: Critic, engine: Engine, see: Callable[[Frames, Tensor], Tensor]) -> None:
        self.critic, self.engine, self.see = critic, engine, see

    def fit(self, learner: Learner, frames: Frames) -> None:
        """Called before every actor step; a judge of its own learns here. The critics themselves need nothing."""

    def modules(self) -> dict[str, nn.Module]:
        """What it has beside the learner's critics, to be saved."""
        return {}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Their optimisers, to be saved."""
        return {}


class Learner:
    """Actor, critics, their targets and optimisers.

    Args:
        actor: the trained module; its target is a copy.
        critic: the trained ensemble; its target is a copy.
        propose: runs an actor on frames.
        decode: makes the executed action of the actor's output.
        critic_input: what the critic sees.
        config: settings.
        generator: of all randomness of the updates; noise is moved where it is needed, engine "graph" needs it on the device.
        judge: what the actor climbs; the critics' value of the decoded action if left out.
    """

    def __init__(
        self,
        actor: nn.Module,
        critic: Critic,
        *,
        propose: Propose,
        decode: Decode,
        critic_input: CriticInput,
        config: LearnerConfig,
        generator: torch.Generator,
        judge: Judge | None = None,
    ) -> None:
        self.actor, self.critic, self.config, self.generator = actor, critic, config, generator
        self.propose, self.decode, self.critic_input = propose, decode, critic_input
        self.actor_target = copy.deepcopy(actor).requires_grad_(False)
        self.critic_target = copy.deepcopy(critic).requires_grad_(False)
        self.critic_target.head = critic.head  # what a head keeps track of is one thing
        self._actor = [p for p in actor.parameters() if p.requires_grad]
        trained = [n for n, p in actor.named_parameters() if p.requires_grad]
        targets = dict(self.actor_target.named_parameters())
        self._actor_target = [targets[n] for n in trained]
        self._critic, self._critic_target = list(critic.parameters()), list(self.critic_target.parameters())
        device = self._critic[0].device
        engine = resolve(config.engine, device)
        graphed = engine == "graph"
        self.actor_optimizer = torch.optim.Adam(self._actor, lr=config.actor_lr, fused=True, capturable=graphed)
        self.critic_optimizer = torch.optim.Adam(self._critic, lr=config.critic_lr, fused=True, capturable=graphed)
        self.engine = make_engine(critic.net, engine)
        self.target_engine = make_engine(self.critic_target.net, engine)
        self._actor_swap, self._actor_target_swap = Swapped(actor, engine), Swapped(self.actor_target, engine)
        self.judge = judge or Judge(critic, self.engine, lambda frames, u: critic_input(frames, decode(frames, u)))
        self.output_cost = torch.full((), float(config.output_l2), device=device)
        """Cost of the actor's mean squared output; on the device, so that it can change under a recorded update."""
        self.log_temperature = torch.full((1,), math.log(config.temperature), device=device, requires_grad=True)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=config.temperature_lr, fused=True, capturable=graphed)
        self.updates = 0
        self._sums = torch.zeros(len(METRICS), device=device)
        self._sum = self._sums.unbind()  # adding to a view is one operation, to an item three
        self._critic_updates = self._actor_updates = 0
        self._graph = GraphedUpdate(self._step, self._recordable()) if graphed else None

    # ------------------------------------------------------------ updates

    def update(self, batch: Batch, *, train_actor: bool = True) -> None:
        """One critic update and, every `actor_every`-th time, one actor update; then the targets follow."""
        self.updates += 1
        with_actor = train_actor and self.updates % self.config.actor_every == 0
        if self._graph is None:
            self._step(batch, with_actor)
            if not train_actor and self.updates % self.config.actor_every == 0:
                self.judge.fit(self, batch.frames)  # that actors find no judge that knows nothing
        elif self._graph(batch, with_actor):
            self._critic_updates += 1
            self._actor_updates += with_actor

    def _step(self, batch: Batch, with_actor: bool) -> None:
        """The update, the same for every engine: no value is read back, and nothing depends on the host but the arguments."""
        self.critic_step(batch, self.target(batch))
        if with_actor:
            self.actor_step(batch.frames)
            polyak(self._actor_target, self._actor, self.config.tau)
        polyak(self._critic_target, self._critic, self.config.tau)

    def _recordable(self) -> torch.Generator:
        """The generator, if an update is nothing but `_step`."""
        if type(self).update is not Learner.update or type(self.judge) is not Judge:
            raise InputError("engine 'graph' records the plain update and this method does more in one; use 'compile'")
        return self.generator

    @torch.no_grad()
    def target(self, batch: Batch, heads: Tensor | list[int] | None = None, noise: Tensor | None = None) -> Tensor:
        """Bootstrapped targets, as the critic's head takes them: (B,) for the scalar one.

        Args:
            batch: transitions.
            heads: target heads to use; drawn if left out.
            noise: (B, U) smoothing noise before clipping; drawn if left out.
        """
        config, frames = self.config, batch.next_frames
        action, log_p = self.next_action(frames, noise)
        out = self.target_engine.evaluate(self.critic_input(frames, action), self.draw_heads() if heads is None else heads)
        backup = Backup(
            reward=batch.reward,
            discount=batch.discount,
            reduce=config.target_reduce,
            low=config.target_low,
            high=config.target_high,
            bonus=-self.log_temperature.exp() * log_p if config.entropy_in_target and log_p is not None else None,
            generator=self.generator,
        )
        head = self.critic_target.head
        target = head.target(out, backup)
        self._sum[2].add_(head.target_mean(target))
        return target

    def next_action(self, frames: Frames, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What would be executed in `frames`, as targets see it: (B, A), and its log probability (B,) where the actor has one."""
        config = self.config
        u, log_p = self.proposal(frames, target=config.target_actor)
        if config.smoothing_std > 0:
            if noise is None:
                noise = torch.randn(u.shape, generator=self.generator, device=self.generator.device).to(u.device).mul_(config.smoothing_std)
            u = u + noise.clamp(-config.smoothing_clip, config.smoothing_clip)
        return self.decode(frames, u), log_p

    def proposal(self, frames: Frames, *, target: bool = False) -> tuple[Tensor, Tensor | None]:
        """What the actor, or its target, puts out for `frames`, (B, U), and its log probability (B,) where it has one."""
        with self._actor_target_swap if target else self._actor_swap:
            given = self.propose(self.actor_target if target else self.actor, frames)
        return given if isinstance(given, tuple) else (given, None)

    def draw_heads(self) -> Tensor | list[int] | None:
        """A random subset of the target heads, a list where it is drawn on the host; None for all."""
        total, wanted, where = self.critic.net.heads, self.config.target_heads, self.generator.device
        if wanted >= total:
            return None
        drawn = torch.rand(total, generator=self.generator, device=where).topk(wanted).indices
        return drawn.tolist() if where.type == "cpu" else drawn

    def critic_step(self, batch: Batch, target: Tensor) -> None:
        """One Adam step of all heads towards what `target` gave."""
        out = self.engine.forward(self.critic_input(batch.frames, batch.action))
        loss, grad = self.critic.head.loss(out, target)
        self._sum[0].add_(loss)
        self._sum[1].add_(out.mean() if out.shape[-1] == 1 else self.critic.head.value(out).mean())
        self.engine.backward(grad, parameters=True, inputs=False)
        self.critic_optimizer.step()
        self._critic_updates += 1

    def actor_step(self, frames: Frames) -> None:
        """One Adam step of the actor up the judge's value. The judge gets no gradient."""
        judge = self.judge
        judge.fit(self, frames)
        u, log_p = self.proposal(frames)
        x = judge.see(frames, u)
        out = judge.engine.forward(x.detach()).detach().requires_grad_()
        value = reduce_values(judge.critic.head.value(out), self.config.actor_reduce).mean()
        (grad_out,) = torch.autograd.grad(-value, out)
        grad_x = judge.engine.backward(grad_out, parameters=False, inputs=True)
        size = u.square().mean()
        beside = self.output_cost * size
        if log_p is not None and self.config.target_entropy is not None:
            beside = beside + self.log_temperature.exp().detach() * log_p.mean()
        self.actor_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([x, beside], [grad_x, None])
        self.actor_optimizer.step()
        if log_p is not None and self.config.target_entropy is not None:
            self._temperature_step(log_p.detach(), self.config.target_entropy)
        self._sum[3].add_(value.detach())
        self._sum[4].add_(size.detach())
        self._actor_updates += 1

    def _temperature_step(self, log_p: Tensor, wanted: float) -> None:
        """Warmer where the actor has less entropy than wanted, colder where it has more."""
        self.temperature_optimizer.zero_grad()
        (-self.log_temperature.exp() * (log_p.mean() + wanted)).sum().backward()
        self.temperature_optimizer.step()

    @contextmanager
    def slow_actor(self) -> Iterator[None]:
        """Within it the actor has the weights of its slow copy: what it has been lately, without the last updates' swing."""
        actor = [p.detach() for p in self._actor]
        kept = [p.clone() for p in actor]
        torch._foreach_copy_(actor, [p.detach() for p in self._actor_target])  # pyright: ignore[reportPrivateImportUsage]
        try:
            yield
        finally:
            torch._foreach_copy_(actor, kept)  # pyright: ignore[reportPrivateImportUsage]

    def stay_near(self, weight: float, temperature: float) -> None:
        """The actor's output costs `weight` per mean square from now on; a learner that is new begins at this temperature."""
        self.output_cost.fill_(weight)
        if not self.updates:
            self.log_temperature.data.fill_(math.log(temperature))

    def return_to(self, weights: Mapping[str, Tensor]) -> None:
        """The actor and its target become what they were with `weights`, without a memory of where they went since."""
        with torch.no_grad():
            for module in (self.actor, self.actor_target):
                module.load_state_dict(weights)
            for kept in self.actor_optimizer.state.values():
                for value in kept.values():
                    value.zero_()

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call; the one place that waits for the device."""
        sums = self._sums.tolist()
        counts = [self._critic_updates] * 3 + [self._actor_updates] * 2
        means = {n: s / c for n, s, c in zip(METRICS, sums, counts, strict=True) if c}
        if "output_rms" in means:
            means["output_rms"] **= 0.5
        self._sums.zero_()
        self._critic_updates = self._actor_updates = 0
        return means

    # ------------------------------------------------------------ saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and numbers that `load_state` needs."""
        tensors: dict[str, Tensor] = {"learner_rng": self.generator.get_state(), "metric_sums": self._sums}
        tensors["log_temperature"] = self.log_temperature.detach()
        for name, module in self._modules().items():
            tensors |= module_state(name, module)
        for name, optimizer in self._optimizers().items():
            tensors |= optimizer_state(name, optimizer)
        return tensors, {"updates": self.updates, "critic_updates": self._critic_updates, "actor_updates": self._actor_updates}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        """Become the learner that `state` was taken from."""
        for name, module in self._modules().items():
            load_module_state(name, module, tensors)
        for name, optimizer in self._optimizers().items():
            load_optimizer_state(name, optimizer, tensors)
        with torch.no_grad():
            self.log_temperature.copy_(tensors.get("log_temperature", self.log_temperature))
        self.generator.set_state(tensors["learner_rng"])
        self._sums.copy_(tensors["metric_sums"])
        self.updates, self._critic_updates, self._actor_updates = (numbers[k] for k in ("updates", "critic_updates", "actor_updates"))

    def _modules(self) -> dict[str, nn.Module]:
        names = ("actor", "actor_target", "critic", "critic_target")
        return {name: getattr(self, name) for name in names} | self.judge.modules()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        names = ("actor_optimizer", "critic_optimizer", "temperature_optimizer")
        return {name: getattr(self, name) for name in names} | self.judge.optimizers()
