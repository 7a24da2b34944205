"""What of a policy becomes a graph: modules from named tensors to named tensors, inputs to trace them with, and the loop between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policies.base import EmbeddingContext, PolicyModule
from policies.best_of import BestOfN, candidates
from policies.bootstrapped import Bootstrapped
from policies.composed import Composed
from policies.decorated import Decorated
from policies.denoising import DenoisingPolicy
from policies.energy import EnergyPolicy
from policies.goals import PREFIX, GoalContext
from policies.guided import Guided
from policies.residual import Residual
from sinew.errors import InputError

START = "context = encode(observation): once for any number of candidates; noise (batch, candidates, horizon, action) from N(0, I)"
DENOISE = (
    START,
    "y = start * noise",
    "for each of steps: D = step(y, level, skip, out, context); y = keep * y + pull * D",
    "actions = y limited to [-1, 1]",
    "guidance: x = y / scale is the chunk with noise of deviation sigma added, D the estimate of it without; change D before y moves",
)
DESCEND = (
    START,
    "x = noise as rows of batch times candidates, each with the embedding of its observation; all rows are active",
    "steps times: g = step(x, embedding) of the active rows; a row whose root mean square of g is below tolerance stays; "
    "the others: x = x - step_size * g",
    "actions = x limited to [-1, 1]; the last root mean square of a row ranks the candidates of one observation, lower is better",
)
BEST = (
    "noise (batch, chunks, candidates, horizon, action) from N(0, I)",
    "actions = sample(observation, noise): each chunk is the best of its candidates",
)


@dataclass(frozen=True)
class Graph:
    """A module from named tensors to a tuple of named tensors."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """To trace it with; the first axis counts rows."""
    outputs: tuple[str, ...]
    wide: tuple[str, ...] = ()
    """Inputs and outputs whose second axis counts candidates."""
    scalars: tuple[str, ...] = ()
    """Inputs without axes."""
    differentiates: bool = False
    """Whether the module takes a gradient inside."""
    fixed: bool = False
    """Whether it is traced for one observation and one candidate only: compositions take minutes with free axes."""


def graphs_of(policy: PolicyModule, steps: int | None) -> dict[str, Graph]:
    """The graphs of a policy by name: "encode" and "step" where its sample is a loop that others can run, "sample" where
    the whole is one graph, "correct" where it corrects.

    Raises:
        InputError: it takes language.
    """
    if "language" in policy.spec.capabilities:
        raise InputError(f"{type(policy).__name__} takes language, which no graph does: serve it with sinew serve instead")
    obs = example(policy, 2, seed=0)
    noise = torch.randn(2, 3, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(1))
    core, graphs = planner(policy), {}
    if isinstance(core, DenoisingPolicy | EnergyPolicy):
        encode = Encode(policy)
        with torch.no_grad():
            encoded = encode(obs)
        names: tuple[str, ...] = ("embedding", "free")[: len(encoded)]
        graphs["encode"] = Graph(encode, obs, names)
        context: dict[str, torch.Tensor] = dict(zip(names, encoded, strict=True))
        graphs["step"] = _descent_step(core, noise, context) if isinstance(core, EnergyPolicy) else _denoise_step(core, noise, context)
    if not isinstance(core, EnergyPolicy):
        best = isinstance(core, BestOfN)
        inputs = {**obs, "noise": candidates(noise, core.config.n) if best else noise}
        module = BestSample(core, steps) if best else Sample(policy, steps)
        graphs["sample"] = Graph(module, inputs, ("actions",), wide=("noise", "actions"), fixed=_composes(core))
    if "correct" in policy.spec.capabilities:
        action = torch.rand(2, policy.spec.action_dim, generator=torch.Generator().manual_seed(2)) * 2 - 1
        graphs["correct"] = Graph(Correct(policy), {**newest(obs), "action": action}, ("corrected",))
    with torch.no_grad():
        for graph in graphs.values():
            graph.module(graph.inputs)  # policies keep the numbers of their steps: they are to be numbers, not traced
    return graphs


def _composes(policy: PolicyModule) -> bool:
    return isinstance(policy, Composed | Guided) or any(map(_composes, policy.bases()))


def _denoise_step(core: DenoisingPolicy, noise: Tensor, context: dict[str, Tensor]) -> Graph:
    scalars = ("level", "skip", "out")  # tensors of their own: the same tensor three times would be one input
    inputs = {"y": noise, **{name: torch.tensor(0.5) for name in scalars}, **context}
    return Graph(DenoiseStep(core), inputs, ("clean", "hidden"), wide=("y", "clean", "hidden"), scalars=scalars)


def _descent_step(core: EnergyPolicy, noise: Tensor, context: dict[str, Tensor]) -> Graph:
    return Graph(DescentStep(core), {"x": noise[:, 0], **context}, ("gradient", "hidden"), differentiates=True)


def loop_of(policy: PolicyModule, steps: int | None) -> dict[str, Any] | None:
    """The loop between `encode` and the chunk, in numbers and in words; None where the sample is one graph only."""
    core = planner(policy)
    if isinstance(core, EnergyPolicy):
        count = core.config.steps if steps is None else steps
        numbers = {"steps": count, "step_size": core.config.step_size, "tolerance": core.config.tolerance}
        return {"kind": "descent", "in_words": DESCEND, **numbers}
    if isinstance(core, BestOfN):
        return {"kind": "best", "in_words": BEST, "candidates": core.config.n}
    if not isinstance(core, DenoisingPolicy):
        return None
    plan, levels = core._plan(steps, torch.zeros((), dtype=torch.float64))
    numbers = [{**step._asdict(), "level": level} for step, level in zip(plan, levels.tolist(), strict=True)]
    return {"kind": "denoising", "in_words": DENOISE, "start": plan[0].scale * plan[0].sigma, "steps": numbers}


# ---------------------------------------------------------------- modules


class Encode(nn.Module):
    """Observations to the embedding, and the goal-free one where the goal is followed more or less than taught."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """{key: (B, To, ...)} → (B, E)."""
        context = self.policy.encode(inputs)
        free = getattr(context, "free", None)
        return (context.embedding,) if free is None else (context.embedding, free)


class DenoiseStep(nn.Module):
    """One clean estimate of a denoising policy."""

    def __init__(self, policy: DenoisingPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Noisy y (B, n, H, A), numbers of the step, embeddings → D (B, n, H, A), hidden units (B, n, F)."""
        y, embedding = inputs["y"], inputs["embedding"]
        context = GoalContext(embedding, free=inputs["free"]) if "free" in inputs else EmbeddingContext(embedding)
        raw, hidden = self.policy._predict(y, self.policy.net.embed_time(inputs["level"]), context)
        return self.policy._clean(y, raw, inputs["skip"], inputs["out"]), hidden


class DescentStep(nn.Module):
    """One gradient of an energy policy; rows are candidates, each with its observation's embedding."""

    def __init__(self, policy: EnergyPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Chunks x (R, H, A), embeddings (R, E) → gradients (R, H, A), hidden units (R, F)."""
        with torch.enable_grad():
            x = inputs["x"].detach().requires_grad_()
            energy, hidden = self.policy.net(x, inputs["embedding"])
            return torch.autograd.grad(energy.sum(), x)[0], hidden.detach()


class Sample(nn.Module):
    """Everything between an observation and its chunks."""

    def __init__(self, policy: PolicyModule, steps: int | None) -> None:
        super().__init__()
        self.policy, self.steps = policy, steps

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor]:
        """{key: (B, To, ...)} and "noise" (B, n, *noise_shape) → (B, n, H, A)."""
        noise = inputs["noise"]
        obs = {key: value for key, value in inputs.items() if key != "noise"}
        return (self.policy.sample(self.policy.encode(obs), n=noise.shape[1], noise=noise, steps=self.steps).actions,)


class BestSample(nn.Module):
    """Everything between an observation and the best of its candidates, whose noise is an input."""

    def __init__(self, policy: BestOfN, steps: int | None) -> None:
        super().__init__()
        self.policy, self.steps = policy, steps

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor]:
        """{key: (B, To, ...)} and "noise" (B, n, N, *noise_shape) → (B, n, H, A)."""
        obs = {key: value for key, value in inputs.items() if key != "noise"}
        return (self.policy.best(self.policy.encode(obs), inputs["noise"], steps=self.steps).actions,)


class Correct(nn.Module):
    """The correction of planned actions."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor]:
        """{key: (N, ...)} and "action" (N, A) → (N, A)."""
        return (self.policy.correct({k: v for k, v in inputs.items() if k != "action"}, inputs["action"]),)


# ---------------------------------------------------------------- inputs


def planner(policy: PolicyModule) -> PolicyModule:
    """The policy that plans the chunks of one that corrects them."""
    while isinstance(policy, Residual | Bootstrapped | Decorated):
        policy = policy.base
    return policy


def newest(obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last of the observations {key: (B, To, ...)}, (B, ...), without goals."""
    return {key: value[:, -1] for key, value in obs.items() if not key.startswith(PREFIX)}


def example(policy: PolicyModule, rows: int, seed: int) -> dict[str, Tensor]:
    """Observations {key: (rows, To, ...)} about where the policy's normaliser expects them, and goals where it takes any."""
    generator, spec = torch.Generator().manual_seed(seed), policy.spec
    normalizer = getattr(getattr(innermost(policy), "encoder", None), "normalizer", None)
    obs: dict[str, Tensor] = {}
    for key, tensor in spec.observation.tensors.items():
        shape = (rows, spec.n_obs_steps, *tensor.shape)
        if key in spec.observation.images:
            obs[key] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            continue
        obs[key] = torch.randn(shape, generator=generator)
        if normalizer is not None and key in normalizer.keys:
            size = obs[key][0, 0].numel()
            first = sum(normalizer.sizes[: normalizer.keys.index(key)])
            mean, scale = (v[first : first + size].reshape(tensor.shape) for v in (normalizer.mean, normalizer.scale))
            obs[key] = mean + scale * obs[key].to(mean)
    goal = getattr(innermost(policy), "goal", None)
    return obs if goal is None else {**obs, **{PREFIX + key: obs[key][:, -1].flip(0).clone() for key in goal.settings.keys}}


def innermost(policy: PolicyModule) -> PolicyModule:
    """The first policy that is built around no other."""
    while policy.bases():
        policy = policy.bases()[0]
    return policy
