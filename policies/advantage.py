"""Conditioning on an advantage: a policy is taught which recorded actions were better than usual, and asked for such ones.

Source: pi*0.6, "a VLA that learns from experience", arXiv:2511.14759; its training data are labelled by `rl.recap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from policies.base import PolicyModule, Wrapper, per_chunk, weighted_loss
from policies.catalog import register
from policies.denoising import DenoisingPolicy
from policies.goals import GoalContext
from policies.language import LANGUAGE
from sinew.errors import DataError, SpecError
from sinew.protocols import Chunk, Context, EpisodeData, Loss
from sinew.specs import ACTION, TASK, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

ADVANTAGE = "advantage"
"""Key of a training batch: (B, To, 1), above 0.5 where the action was better than usual. Without it all are taken to be."""
DROPPED = "advantage_dropped"
"""Key of a training batch: (B,) bool, which samples are taught without knowing."""
WORDS = ("Advantage: negative.", "Advantage: positive.")
"""What a language policy is told, after the instruction."""


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """Settings of the conditioning."""

    guidance: float = 1.0
    """How far actions are drawn towards better ones: 0 not at all, 1 as taught, above 1 more than taught (twice the cost)."""
    dropout: float = 0.3
    """Share of training samples that are taught without knowing."""

    def __post_init__(self) -> None:
        if not self.guidance >= 0 or not 0 <= self.dropout <= 1:
            raise SpecError(f"advantage guidance {self.guidance} must not be negative, and dropout {self.dropout} in [0, 1]")


@dataclass(frozen=True)
class AdvantageContext:
    """The base's context of an observation whose action is to be a good one; and of the bare one where the two are compared."""

    inner: Any
    free: Any = None

    @property
    def batch(self) -> int:
        """Rows that the context stands for."""
        return self.inner.batch

    @property
    def embedding(self) -> Tensor:
        """The inner context's embedding."""
        return self.inner.embedding

    def expand(self, n: int) -> AdvantageContext:
        """The same for n candidates each; nothing is copied."""
        return AdvantageContext(self.inner.expand(n), None if self.free is None else self.free.expand(n))


@register("advantage")
class AdvantageConditioned(Wrapper):
    """A denoising policy that is told whether its action is to be better than usual; before it was taught, the base bit for bit.

    Vectors and pictures: a learned vector is added to the condition's embedding. Language: the instruction is continued in words.
    The base is trained along.

    Args:
        base: a policy that learns to denoise: flow, diffusion, edm or vla.
        guidance: see `AdvantageConfig`.
        dropout: see `AdvantageConfig`.

    Raises:
        SpecError: the base is none of these.
    """

    Config = AdvantageConfig
    active: Tensor

    def __init__(self, base: PolicyModule, guidance: float = 1.0, dropout: float = 0.3) -> None:
        if not isinstance(base, DenoisingPolicy):
            raise SpecError(f"conditioning on advantages trains a flow, diffusion, edm or vla policy, not {type(base).__name__}")
        config = AdvantageConfig(guidance=float(guidance), dropout=float(dropout))
        super().__init__(base.spec, config, base)
        self.speaks = LANGUAGE in base.spec.capabilities
        if not self.speaks:
            weight = next(base.net.parameters())
            width = base.net.embed(weight.new_zeros(1, base.encoder.dim + (base.goal.dim if base.goal else 0))).shape[-1]
            self.words = nn.Parameter(weight.new_zeros(len(WORDS), width))
        self.register_buffer("active", torch.zeros((), dtype=torch.bool, device=base.device))
        """Whether it was taught; until then it is the base."""

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> AdvantageConditioned:
        """See `PolicyModule.rebuild`."""
        return cls(bases[0], config.guidance, config.dropout)

    # ------------------------------------------------------------ acting

    def encode(self, obs: Mapping[str, Any]) -> AdvantageContext:
        """{key: (B, To, ...)}, for a language policy with "task", B strings → what a good action follows."""
        if not bool(self.active):
            return AdvantageContext(self.base.encode(obs))
        compared = self.config.guidance != 1
        if self.speaks:
            spoken: dict[str, Any] = {**obs, TASK: self._say(obs, [1] * len(obs.get(TASK, ())))}
            told = self.base.encode(spoken)
            return AdvantageContext(told, self.base.encode(obs) if compared else None)
        bare: Any = self.base.encode(obs)
        return AdvantageContext(moved(bare, self.words[1]), bare if compared else None)

    def _say(self, obs: Mapping[str, Any], labels: Sequence[int | None]) -> list[str]:
        if TASK not in obs:
            raise SpecError("a language policy that knows of advantages needs its instruction: give 'task', one text per row")
        return [text if label is None else f"{text} {WORDS[label]}" for text, label in zip(obs[TASK], labels, strict=True)]

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
        """Chunks (B, n, H, A) of the base; clean estimates are drawn away from those of the bare observation as far as wanted."""
        if ctx.free is not None:
            guidance = (self._away_from(ctx.free.expand(n)), *guidance)
        return self.base.sample(ctx.inner, n=n, noise=noise, steps=steps, guidance=guidance, features=features, generator=generator)

    def _away_from(self, free: Context) -> Any:
        base: Any = self.base

        def guide(x: Tensor, clean: Tensor, sigma: Tensor, ctx: Context) -> Tensor:
            bare = base.denoise(x, sigma, free)
            return bare + self.config.guidance * (clean - bare)

        return guide

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Any) -> Tensor:
        """The base's denoiser, guided."""
        clean = super().denoise(x, sigma, ctx.inner)
        return clean if ctx.free is None else self._away_from(ctx.free)(x, clean, sigma, ctx)

    # ------------------------------------------------------------ learning

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """The base's randomness, and which samples are taught without knowing."""
        return {**self.base.draw(rows, generator), DROPPED: torch.rand(rows, generator=generator) < self.config.dropout}

    def augment(self, batch: dict[str, Any], draws: Mapping[str, Tensor]) -> dict[str, Any]:
        """The base's augmentation, and some samples without their label."""
        return {**self.base.augment(batch, draws), DROPPED: draws[DROPPED]}

    def loss(self, batch: Mapping[str, Any], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """The base's loss with every sample told whether its action was better than usual, unless that is dropped."""
        base, action = self.base, batch[ACTION]
        good = batch[ADVANTAGE][:, -1, 0] > 0.5 if ADVANTAGE in batch else torch.ones(len(action), dtype=torch.bool, device=action.device)
        known = ~batch[DROPPED] if DROPPED in batch else torch.ones_like(good)
        if self.speaks:
            labels = [int(g) if k else None for g, k in zip(good.tolist(), known.tolist(), strict=True)]
            spoken: dict[str, Any] = {**batch, TASK: self._say(batch, labels)}
            return base.loss(spoken, t=t, noise=noise)
        if t is None or noise is None:
            drawn = {k: v.to(action.device) for k, v in base.draw(len(action)).items()}
            t, noise = drawn["t"] if t is None else t, drawn["noise"] if noise is None else noise
        told = moved(base.encode(batch), self.words[good.long()] * known.to(self.words)[:, None])
        y, target, level = base.corrupt(action, noise, t)  # type: ignore[operator]
        predicted, _ = base.net(y.unsqueeze(1), base.net.embed_time(level).unsqueeze(1), told.embedding)  # type: ignore[operator]
        error = (predicted.squeeze(1) - target).square().mean(-1)
        return weighted_loss(per_chunk(error, batch, base.config.mask_padding), batch)


def moved(ctx: Any, by: Tensor) -> Any:
    """A context whose embeddings are moved by (E,) or (B, E)."""
    if isinstance(ctx, GoalContext) and ctx.free is not None:
        return replace(ctx, embedding=ctx.embedding + by, free=ctx.free + by)
    return replace(ctx, embedding=ctx.embedding + by)


class AdvantageTraining(PolicyModule):
    """A policy while it is taught by labelled data: what `policies.train.train` is given; it saves the policy.

    Args:
        policy: trained in place, and told of advantages from now on.
    """

    Config = AdvantageConfig

    def __init__(self, policy: AdvantageConditioned) -> None:
        super().__init__(replace(policy.spec, observation=labelled_spec(policy.spec.observation)), policy.config)
        self.policy = policy
        policy.active.fill_(True)

    def product(self) -> PolicyModule:
        """The policy."""
        return self.policy

    def loss(self, batch: Mapping[str, Any], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """The policy's."""
        return self.policy.loss(batch, t=t, noise=noise)

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """The policy's."""
        return self.policy.draw(rows, generator)

    def augment(self, batch: dict[str, Any], draws: Mapping[str, Tensor]) -> dict[str, Any]:
        """The policy's."""
        return self.policy.augment(batch, draws)


def labelled_spec(spec: ObservationSpec) -> ObservationSpec:
    """An observation with the label beside it."""
    return ObservationSpec({**spec.tensors, ADVANTAGE: TensorSpec(shape=(1,))})


class Labelled:
    """A dataset with the label of every frame; implements `sinew.protocols.EpisodeData` and, as far as the dataset does, `HasColumns`.

    Args:
        data: the dataset.
        labels: (frames,) 0 or 1.

    Raises:
        DataError: their number is not that of the frames.
    """

    def __init__(self, data: EpisodeData, labels: np.ndarray) -> None:
        if labels.shape != (len(data),):
            raise DataError(f"{labels.shape} labels do not fit {len(data)} frames: give one for each")
        self.data, self.labels = data, labels.astype(np.float32)
        self.tasks = getattr(data, "tasks", ())

    @property
    def observation_spec(self) -> ObservationSpec:
        """The dataset's, with the label."""
        return labelled_spec(self.data.observation_spec)

    @property
    def action_spec(self) -> ActionSpec:
        """The dataset's."""
        return self.data.action_spec

    @property
    def num_episodes(self) -> int:
        """The dataset's."""
        return self.data.num_episodes

    def stats(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The dataset's."""
        return self.data.stats()

    def __len__(self) -> int:
        return len(self.data)

    def column(self, key: str) -> np.ndarray:
        """The dataset's columns, and the labels."""
        return self.labels[:, None] if key == ADVANTAGE else self.data.column(key)  # type: ignore[attr-defined]

    def window(self, indices: np.ndarray, n_obs_steps: int, horizon: int, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As the dataset gives it, and "advantage" (B, To, 1): the label of the frame itself."""
        inner = None if keys is None else [key for key in keys if key != ADVANTAGE]
        label = np.repeat(self.labels[indices, None, None], n_obs_steps, axis=1)
        return {**self.data.window(indices, n_obs_steps, horizon, inner), ADVANTAGE: label}
