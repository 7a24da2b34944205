"""One-step policies: a denoiser's network that is also told where to jump to.

The jump from x at noise level t to level s <= t is

    G(x, t -> s) = g + (x - g) s / t,    g = skip(t) y + out(t) F(y, level(t), s, c),    y = scale(t) x,

which is x itself at s = t, whatever the network says. g is a mean, over the path from t to s, of what a denoiser says on
it; at s = t it is the denoiser, so a network that denoises is a jumping one in its first moments. A policy made here
takes over a denoiser's encoder, network and parametrisation, and adds an embedding of s that starts at nothing.

It comes from a teacher by `policies.distill`, or is trained from data alone, see `ConsistencyPolicy.loss`.

Source: Kim et al. 2023, arXiv:2310.02279 (the jump); Song et al. 2023, arXiv:2303.01469 (consistency).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn

from policies.backbones import FourierTime
from policies.base import PolicyModule, noise_for, per_chunk, weighted_loss
from policies.catalog import register
from policies.denoising import DenoisingPolicy
from policies.diffusion import DiffusionPolicy
from policies.flow import FlowConfig, FlowPolicy
from policies.sampling import sigma_to_time, time_to_sigma
from sinew.errors import SpecError
from sinew.protocols import Chunk, Loss, Obs
from sinew.specs import ACTION, PolicySpec

TIME_MIN = 1e-3
"""Smallest noise level that is trained, as time sigma / (1 + sigma)."""
START_SHARE = 0.25
"""Share of training samples without a teacher that start at the noisiest level, where sampling starts."""
LARGEST_END = 0.9999
"""Without a teacher, a jump ends at most at this share of the time where it starts: one of no length has no mean."""
_FREQUENCIES, _WIDTH = 16, 128


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Settings of the one-step policy."""

    steps: int = 1
    """Jumps of a sample."""
    network: FlowConfig | None = None
    """Network of a policy made from scratch, the flow policy's own if None; a distilled one has its teacher's."""
    sigma_max: float | None = None
    """Noise level at which sampling starts; where the base would start if None."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SpecError(f"consistency steps must be at least 1, not {self.steps}")
        if self.sigma_max is not None and not 0 < self.sigma_max < math.inf:
            raise SpecError(f"consistency sigma_max must be above 0 and finite, not {self.sigma_max}")


class Form(NamedTuple):
    """The parametrisation at noise levels sigma, each like sigma: y = scale x, g = skip y + out F."""

    scale: Tensor
    skip: Tensor
    out: Tensor
    level: Tensor
    """The time that the network is told."""


class _Plan(NamedTuple):
    """The jumps of a sample in numbers."""

    first: float
    """The network first sees the noise times this."""
    jumps: tuple[tuple[float, float], ...]
    """Of each jump (keep, pull): y' = keep y + pull F."""
    level: Tensor
    """(steps,) times that the network is told."""
    end: Tensor
    """(steps,) levels where the jumps end."""


class Jump(nn.Module):
    """Where to jump to, as a term of the network's time embedding; zero until it is trained.

    Args:
        dim: length E of the network's time embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        last = nn.Linear(_WIDTH, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(FourierTime(_FREQUENCIES), nn.Linear(2 * _FREQUENCIES, _WIDTH), nn.SiLU(), last)

    def forward(self, sigma: Tensor) -> Tensor:
        """Noise levels (...) → (..., E)."""
        return self.layers(sigma_to_time(sigma))


@register("consistency")
class ConsistencyPolicy(PolicyModule):
    """A policy that samples in one jump, or in a few; see the module.

    It cannot be guided: a jump is not a mean over the chunks that x may come from, so there is nothing that a guidance
    could move by the score.

    Args:
        base: gives encoder, network and parametrisation; its weights are those to start from.
        config: settings.
    """

    Config = ConsistencyConfig

    def __init__(self, base: DenoisingPolicy, config: ConsistencyConfig | None = None) -> None:
        capabilities = tuple(name for name in base.spec.capabilities if name != "denoise")
        super().__init__(replace(base.spec, capabilities=capabilities), config or ConsistencyConfig())
        self.base = base
        embedded = base.net.embed_time(torch.zeros(1, device=base.device))
        self.jump = Jump(embedded.shape[-1]).to(embedded)
        self._plans: dict[Any, _Plan] = {}
        self._telling = [*self.jump.parameters(), *base.net.parameters()]
        self._kept: dict[Any, tuple[list[tuple[int, int]], Tensor]] = {}

    @classmethod
    def build(cls, spec: PolicySpec, stats: Mapping[str, Mapping[str, np.ndarray]], config: Any) -> Self:
        """See `policies.make`; the network is a flow policy's."""
        return cls(FlowPolicy.build(spec, stats, config.network or FlowConfig()), config)

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> Self:
        """See `PolicyModule.rebuild`."""
        (base,) = bases
        if not isinstance(base, DenoisingPolicy):
            raise SpecError(f"a consistency policy is made of a denoiser, not of {type(base).__name__}")
        return cls(base, config)

    def bases(self) -> tuple[PolicyModule, ...]:
        """The policy whose encoder and network this one has; by itself it acts badly, its network has been taught to jump."""
        return (self.base,)

    # ------------------------------------------------------------ acting

    def encode(self, obs: Mapping[str, Tensor]) -> Any:
        """See the kind of policy that gives the network."""
        return self.base.encode(obs)

    def sample(
        self,
        ctx: Any,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """Chunks (B, n, H, A) in `steps` jumps.

        Raises:
            SpecError: fewer than one step, or guidance.
        """
        if guidance:
            raise SpecError("a consistency policy takes no guidance: it jumps to the end, where nothing is left to guide; use its teacher")
        noise = noise_for(self.spec, ctx, n, noise, generator, ctx.embedding.device)
        plan = self._plan(self.config.steps if steps is None else steps, noise)
        told = self._told(plan)
        y = plan.first * noise.reshape(-1, ctx.expand(n).candidates, *self.spec.noise_shape)
        hidden = y
        for k, (keep, pull) in enumerate(plan.jumps):
            raw, hidden = self.base._predict(y, told[k], ctx)
            y = keep * y + pull * raw
        return Chunk(
            actions=y.clamp(-1, 1).reshape(ctx.batch, n, *self.spec.noise_shape),
            noise=noise,
            features=hidden.reshape(ctx.batch, n, -1) if features else None,
        )

    def _told(self, plan: _Plan) -> Tensor:
        """What the network is told of each jump, (steps, E).

        It depends on the weights alone, and costs a tenth of a small network's only pass, so it is kept while none of
        them changes (torch counts every change in place) and no gradient is wanted.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self._telling[0].is_inference():
            return self.base.net.embed_time(plan.level) + self.jump(plan.end)
        key = len(plan.jumps), plan.level.dtype, plan.level.device
        state = [(weight._version, weight.data_ptr()) for weight in self._telling]
        known = self._kept.get(key)
        if known is None or known[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                known = state, self.base.net.embed_time(plan.level.clone()) + self.jump(plan.end.clone())
            self._kept[key] = known
        return known[1]

    def _plan(self, steps: int, like: Tensor) -> _Plan:
        """The jumps of a sample in numbers."""
        key = (steps, like.dtype, like.device)
        if key not in self._plans:
            with torch.inference_mode(False):  # kept for later, whoever asks then
                sigmas = self.sigmas(steps).double()
                start, end = sigmas[:-1], sigmas[1:]
                scale, skip, out, level = self.form(start)
                following = torch.cat([scale[1:], scale.new_ones(1)])  # the last jump ends in x itself
                ratio = end / start
                keep, pull = following * ((1 - ratio) * skip + ratio / scale), following * (1 - ratio) * out
                jumps = tuple(zip(keep.tolist(), pull.tolist(), strict=True))
                self._plans[key] = _Plan(float(scale[0] * start[0]), jumps, level.to(like), end.to(like))
        return self._plans[key]

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Noise levels (steps + 1,) float32 between the jumps; the last is 0.

        Raises:
            SpecError: fewer than one step.
        """
        count: int = self.config.steps if steps is None else steps
        if count < 1:
            raise SpecError(f"a consistency policy samples in at least 1 step, not {count}")
        if self.config.sigma_max is None:
            return self.base.levels(count).float()
        start = self.config.sigma_max / (1 + self.config.sigma_max)
        return time_to_sigma(torch.linspace(start, 0, count + 1, dtype=torch.float64)).float()

    def mean(self, x: Tensor, start: Tensor, end: Tensor, ctx: Any) -> tuple[Tensor, Tensor]:
        """The mean g of the jump from level `start` to `end`.

        Args:
            x: (B, n, H, A), n counting candidates of a context row.
            start: () or (B, n).
            end: like `start`, not above it.
            ctx: what `encode` gave, for B rows.

        Returns:
            (B, n, H, A) g; (B, n, feature_dim) hidden units.
        """
        form = self.form(start)
        y = wide(form.scale) * x
        raw, hidden = self.raw(y, form, end, ctx)
        return wide(form.skip) * y + wide(form.out) * raw, hidden

    def raw(self, y: Tensor, form: Form, end: Tensor, ctx: Any) -> tuple[Tensor, Tensor]:
        """The network's output F for y (B, n, H, A), and its hidden units."""
        return self.base._predict(y, self.base.net.embed_time(form.level) + self.jump(end), ctx)

    def form(self, sigma: Tensor) -> Form:
        """The base's parametrisation; of a network that predicts noise, the one that predicts velocity instead.

        At high noise levels the clean chunk is a small difference between noise and its prediction, out of reach of a
        single jump (Salimans and Ho 2022, arXiv:2202.00512, section 4); at low ones the two predictions are alike.
        """
        scale, skip, out, level = self.base.coefficients(sigma)
        if isinstance(self.base, DiffusionPolicy):
            skip, out = scale, -sigma * scale
        return Form(scale, skip, out, level)

    # ------------------------------------------------------------ learning

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """What the base draws, but "t" (rows, 3): uniform numbers that choose where a jump starts, halts and ends."""
        return {**self.base.draw(rows, generator), "t": torch.rand(rows, 3, generator=generator)}

    def augment(self, batch: dict[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base's augmentation."""
        return self.base.augment(batch, draws)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """Loss without a teacher: the policy denoises at s = t, and its long jumps equal two shorter ones.

        Both are errors of the network's output F. The one minimum of their sum is the denoiser of the data with the jumps
        along its own flow, so nothing is held fixed and the gradient is that of the whole.

        Args:
            batch: {key: (B, To, ...)}, "action" (B, H, A) in [-1, 1], "action_is_pad" (B, H) bool, "weight" (B,) or none.
            t: (B, 3) in [0, 1], see `levels`; drawn where None.
            noise: (B, H, A); drawn where None.

        Source: denoising term of arXiv:2310.02279, equation 8; jumps in two as in Frans et al. 2024, arXiv:2410.12557, and
        Boffi et al. 2025, arXiv:2505.18825.
        """
        action = batch[ACTION]
        if t is None or noise is None:
            drawn = {k: v.to(action.device) for k, v in self.draw(action.shape[0]).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        start, halt, end = (level.unsqueeze(1) for level in self.levels(t))
        ctx = self.encode(batch)
        form = self.form(start)
        x = (action + start[:, :, None] * noise).unsqueeze(1)
        y = wide(form.scale) * x
        denoised, _ = self.raw(y, form, start, ctx)
        far, _ = self.raw(y, form, end, ctx)
        first, _ = self.mean(x, start, halt, ctx)
        second, _ = self.mean(first + (x - first) * wide(halt / start), halt, end, ctx)
        joined = first + (second - first) * wide((1 - end / halt) / (1 - end / start))
        parts = {
            "denoising": self.error(denoised, action.unsqueeze(1), y, form, batch),
            "consistency": self.error(far, joined, y, form, batch),
        }
        logs = {name: part.mean().detach() for name, part in parts.items()}
        return weighted_loss(parts["denoising"] + parts["consistency"], batch, logs)

    def error(self, raw: Tensor, mean: Tensor, y: Tensor, form: Form, batch: Mapping[str, Tensor]) -> Tensor:
        """Squared errors (B,) of outputs F (B, 1, H, A) from those that would give `mean` (B, 1, H, A)."""
        wanted = (mean - wide(form.skip) * y) / wide(form.out)
        return per_chunk((raw - wanted).squeeze(1).square().mean(-1), batch, self.base.config.mask_padding)

    def levels(self, t: Tensor, share: float = START_SHARE) -> tuple[Tensor, Tensor, Tensor]:
        """Levels (B,) where a jump starts, halts and ends, from uniform numbers (B, 3).

        The share of jumps that is told starts at the noisiest level and half of them end at 0, as in sampling; the others are
        uniform in the time sigma / (1 + sigma). The halt is uniform between start and end.
        """
        top = float(sigma_to_time(self.sigmas(1)[0]))
        start = TIME_MIN + (top - TIME_MIN) * (t[:, 0] / max(1 - share, 1e-9)).clamp(max=1)
        end = start * (2 * t[:, 2] - 1).clamp(0, LARGEST_END)
        halt = end + (start - end) * (0.02 + 0.96 * t[:, 1])
        return time_to_sigma(start), time_to_sigma(halt), time_to_sigma(end)

    def observe(self, obs: Obs) -> Tensor:
        """The base's observation features."""
        return self.base.observe(obs)

    @property
    def observation_dim(self) -> int:
        """Length of what `observe` gives."""
        return self.base.observation_dim


def wide(value: Tensor) -> Tensor:
    """() or (B, n) → with two axes more, to multiply chunks (B, n, H, A)."""
    return value[..., None, None]
