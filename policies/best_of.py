"""Several candidates for every chunk, of which the best by some score is executed: more compute for a better action."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from policies.base import PolicyModule, Wrapper, noise_for, require
from policies.catalog import register
from policies.counts import CountConfig, CountNetwork, make_counts
from policies.randomness import normal
from sinew.errors import InputError, SpecError
from sinew.protocols import Chunk, Context, Obs
from sinew.specs import PolicySpec

SCORERS = {"count": "features", "energy": "energy", "q": "observe"}
"""What candidates are ranked by, and the capability that each needs."""
REMEDIES = {
    "count": "rank by another scorer, or use a policy whose sampler gives features",
    "energy": "train one with sinew train --policy energy, or rank by count",
    "q": "rank by count",
}
ALIKE = "its candidates would all be alike; of act policies only those trained with latent_scale above 0 differ"
"""What is told of a policy that does nothing with its noise."""
Value = Callable[[Tensor, Tensor], Tensor]
"""(observation features (R, D), chunks (R, H, A) in [-1, 1]) → values (R,), higher is better."""


@dataclass(frozen=True, kw_only=True)
class BestOfConfig:
    """Settings of the choice among candidates."""

    n: int = 16
    """Candidates per chunk."""
    scorer: str = "count"
    """"count" takes the one that demonstrations know best, "energy" that of least energy, "q" that of highest value."""
    counts: CountConfig | None = None
    """Settings of the pseudo-counts; None for other scorers."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SpecError(f"best-of needs at least 1 candidate, not {self.n}")
        if self.scorer not in SCORERS:
            raise SpecError(f"scorer {self.scorer!r} is unknown: known are {', '.join(SCORERS)}")


@dataclass(frozen=True)
class ValuedContext:
    """A context beside the features that values are a function of."""

    inner: Context
    features: Tensor
    """(B, D) features of the newest observation."""
    candidates: int = 1

    @property
    def batch(self) -> int:
        """Rows that the context stands for."""
        return self.inner.batch

    @property
    def embedding(self) -> Tensor:
        """The inner context's embedding."""
        return self.inner.embedding  # type: ignore[attr-defined]

    def expand(self, n: int) -> ValuedContext:
        """The same context for n candidates each; nothing is copied."""
        return ValuedContext(self.inner.expand(n), self.features, self.candidates * n)


@register("best_of")
class BestOfN(Wrapper):
    """The best of n candidates that share one encode.

    The first candidate is made from the noise that is given, so that n = 1 is the base; the noise of the others is a
    function of that noise alone. It gives no denoiser, and so takes no guidance: guide the base.

    Args:
        base: policy with capability "noise" and the one that the scorer needs: "features", "energy" or "observe".
        n: candidates.
        scorer: pseudo-counts of the base (`fit_counts`), "energy", or a function of features and chunks for values.

    Raises:
        SpecError: the base lacks the capability; says which, and what else can be done.

    Source: pseudo-counts as in TACO ("Steering Vision-Language-Action Models as Anti-Exploration", 2025); energies Gladstone
    et al. 2025, arXiv:2507.02092; values Nakamoto et al. 2024, arXiv:2410.13816.
    """

    Config = BestOfConfig

    def __init__(self, base: PolicyModule, n: int, scorer: CountNetwork | Value | str) -> None:
        kind = "count" if isinstance(scorer, CountNetwork) else scorer if isinstance(scorer, str) else "q"
        counts = scorer.config if isinstance(scorer, CountNetwork) else None
        config = BestOfConfig(n=n, scorer=kind, counts=counts)
        check_scorer(base, kind)
        if isinstance(scorer, CountNetwork) and len(scorer.mean) != base.spec.feature_dim:
            raise SpecError(f"pseudo-counts of {len(scorer.mean)} features do not fit a policy that gives {base.spec.feature_dim}")
        if isinstance(scorer, str) and kind != "energy":
            raise SpecError(f"best-of by {kind} needs what it ranks by: {'fit_counts(policy, data)' if kind == 'count' else 'a function'}")
        kept = tuple(name for name in base.spec.capabilities if name not in ("denoise", "logprob"))
        super().__init__(replace(base.spec, capabilities=kept), config, base)
        self.counts = scorer.requires_grad_(False) if isinstance(scorer, CountNetwork) else None
        self._value = None if isinstance(scorer, (CountNetwork, str)) else scorer

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> BestOfN:
        """See `PolicyModule.rebuild`."""
        if config.scorer == "count":
            return cls(bases[0], config.n, make_counts(bases[0].spec.feature_dim, config.counts or CountConfig()).eval())
        return cls(bases[0], config.n, config.scorer)

    def assets(self) -> dict[str, str]:
        """None, but a policy that ranks by values cannot be saved.

        Raises:
            InputError: it ranks by values.
        """
        if self._value is not None:
            raise InputError("a best-of policy that ranks by values is not saved, since its critic is not part of it: save its base")
        return {}

    def encode(self, obs: Mapping[str, Tensor]) -> Context:
        """The base's context, and the features of the newest observation where values need them."""
        context = self.base.encode(obs)
        if self._value is None:
            return context
        newest = {key: value[:, -1] if key in self.spec.observation.tensors else value for key, value in obs.items()}
        return ValuedContext(context, self.observe(newest))

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
        """Chunks (B, n, H, A), each the best of its own candidates; `noise` is that of the first candidates.

        Raises:
            SpecError: guidance is given.
        """
        if guidance:
            raise SpecError("best-of takes no guidance: guide the policy inside it, BestOfN(Guided(policy, ...), ...)")
        noise = noise_for(self.spec, ctx, n, noise, generator, self.device)
        return self.best(ctx, candidates(noise, self.config.n), steps=steps, features=features)

    def best(self, ctx: Any, noise: Tensor, *, steps: int | None = None, features: bool = False) -> Chunk:
        """Chunks (B, n, H, A), each the best of N candidates with noise (B, n, N, *noise_shape)."""
        inner = ctx.inner if isinstance(ctx, ValuedContext) else ctx
        n, many = noise.shape[1], noise.flatten(1, 2)
        counted = self.counts is not None
        chunk = self.base.sample(inner, n=many.shape[1], noise=many, steps=steps, features=features or counted)
        best = self._cost(chunk, ctx).view(ctx.batch, n, -1).argmin(-1)
        index = best + torch.arange(n, device=best.device) * noise.shape[2]
        rows = torch.arange(ctx.batch, device=best.device).unsqueeze(-1)
        return Chunk(
            actions=chunk.actions[rows, index],
            noise=noise[:, :, 0],
            features=chunk.features[rows, index] if features and chunk.features is not None else None,
            energy=None if chunk.energy is None else chunk.energy[rows, index],
        )

    def _cost(self, chunk: Chunk, ctx: Any) -> Tensor:
        """What each candidate (B, m) is ranked by; the least is best."""
        shape, flat = chunk.actions.shape[:2], chunk.actions.flatten(0, 1)
        if self.counts is not None and chunk.features is not None:
            return self.counts.novelty(chunk.features.flatten(0, 1)).view(shape)
        if self._value is not None:
            return -self._value(ctx.features.repeat_interleave(len(flat) // len(ctx.features), 0), flat).view(shape)
        if chunk.energy is not None:
            return chunk.energy
        with torch.no_grad():
            return self.base.energy(flat, ctx.expand(shape[1])).view(shape)  # type: ignore[operator]

    @property
    def correct(self) -> Callable[[Obs, Tensor], Tensor]:
        """The base's correction; there where the base corrects."""
        return self.base.correct  # type: ignore[return-value]


def check_scorer(policy: PolicyModule, scorer: str) -> None:
    """Refuse a policy whose candidates cannot be ranked by a scorer.

    Raises:
        SpecError: says what is missing, and what else can be done.
    """
    for needed, remedy in ((SCORERS[scorer], REMEDIES[scorer]), ("noise", ALIKE)):
        try:
            require(policy, needed, f"best-of by {scorer}")
        except SpecError as e:
            raise SpecError(f"{e}: {remedy}") from None


def candidates(noise: Tensor, n: int) -> Tensor:
    """Noise (B, m, *shape) → (B, m, n, *shape): itself first, then N(0, I) that is a function of it alone."""
    if n == 1:
        return noise.unsqueeze(2)
    rows = noise.detach().cpu().flatten(0, 1).contiguous()
    shape = rows.shape[1:]
    seeds = [int.from_bytes(hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest(), "little") for row in rows]
    others = torch.stack([normal((n - 1, *shape), seed, 0) for seed in seeds]).to(rows.dtype)
    return torch.cat([rows.unsqueeze(1), others], dim=1).view(*noise.shape[:2], n, *shape).to(noise.device)
