"""What every policy shares: the frame of a policy module, the wrapper around another policy, the common context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from sinew.errors import SpecError
from sinew.protocols import Chunk, Context, Loss, Obs
from sinew.specs import PolicySpec

WEIGHT = "weight"
"""Key of the optional weights of samples in a training batch."""


@dataclass(frozen=True)
class EmbeddingContext:
    """Context of policies that condition on one vector per observation."""

    embedding: Tensor
    """(B, E) float32, shared by all candidates of an observation."""
    candidates: int = 1
    """Candidates per observation; only counted, never copied."""

    @property
    def batch(self) -> int:
        """Rows that the context stands for: observations times candidates."""
        return self.embedding.shape[0] * self.candidates

    def expand(self, n: int) -> EmbeddingContext:
        """The same embedding for n candidates each; the storage is shared."""
        return EmbeddingContext(self.embedding, self.candidates * n)


class PolicyModule(nn.Module):
    """A policy as a torch module: subclasses implement `encode`, `sample` and `loss` of `sinew.protocols.Policy`.

    Args:
        spec: complete spec, with noise_shape, feature_dim and capabilities filled in.
        config: the dataclass that the policy was made with.
    """

    Config: ClassVar[type]
    """Dataclass of the settings; saved beside the tensors."""
    wraps: ClassVar[bool] = False
    """Whether the policy is built around other policies."""

    def __init__(self, spec: PolicySpec, config: Any) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    @classmethod
    def build(cls, spec: PolicySpec, stats: Mapping[str, Mapping[str, np.ndarray]], config: Any) -> PolicyModule:
        """A fresh policy from the spec of its task and the statistics of its data; see `policies.make`."""
        raise NotImplementedError

    @classmethod
    def rebuild(cls, spec: PolicySpec, config: Any, bases: Sequence[PolicyModule]) -> PolicyModule:
        """The empty shell that a checkpoint's tensors are loaded into."""
        raise NotImplementedError

    def bases(self) -> tuple[PolicyModule, ...]:
        """Policies inside this one; they are saved with it."""
        return ()

    def encode(self, obs: Mapping[str, Tensor]) -> Context:
        """See `sinew.protocols.Policy.encode`."""
        raise NotImplementedError

    def sample(
        self,
        ctx: Context,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """See `sinew.protocols.Policy.sample`."""
        raise NotImplementedError

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """See `sinew.protocols.Policy.loss`."""
        raise NotImplementedError

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Everything random in a training step.

        Args:
            rows: samples of the whole batch, over all processes; each process then takes its share.
            generator: where it is drawn from; None for the global one.

        Returns:
            "t" (rows,), "noise" (rows, *noise_shape), and what `augment` needs, (rows, ...).
        """
        return {
            "t": torch.rand(rows, generator=generator),
            "noise": torch.randn(rows, *self.spec.noise_shape, generator=generator),
        }

    def augment(self, batch: dict[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The training batch with its images augmented by what `draw` gave; the default changes nothing."""
        return batch

    def after_update(self) -> None:
        """Called by training after every optimiser step: target networks move here; the default does nothing."""

    def product(self) -> PolicyModule:
        """What training this makes, saves and gives back; the default is the policy itself."""
        return self

    def assets(self) -> dict[str, str]:
        """Texts that belong to the policy, {file name: text}, kept beside policy.json: a tokenizer, for example."""
        return {}

    def take_assets(self, assets: Mapping[str, str]) -> None:
        """Receive what `assets` gave when the policy was saved, before its tensors are loaded."""

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device


class Wrapper(PolicyModule):
    """A policy around one other that hands everything on; subclasses override what they change."""

    wraps = True

    def __init__(self, spec: PolicySpec, config: Any, base: PolicyModule) -> None:
        super().__init__(spec, config)
        self.base = base

    def bases(self) -> tuple[PolicyModule, ...]:
        """The wrapped policy."""
        return (self.base,)

    def encode(self, obs: Mapping[str, Tensor]) -> Context:
        """The base's context."""
        return self.base.encode(obs)

    def sample(
        self,
        ctx: Context,
        *,
        n: int = 1,
        noise: Tensor | None = None,
        steps: int | None = None,
        guidance: Sequence[Any] = (),
        features: bool = False,
        generator: Generator | None = None,
    ) -> Chunk:
        """The base's chunks."""
        return self.base.sample(ctx, n=n, noise=noise, steps=steps, guidance=guidance, features=features, generator=generator)

    def loss(self, batch: Mapping[str, Tensor], *, t: Tensor | None = None, noise: Tensor | None = None) -> Loss:
        """The base's loss."""
        return self.base.loss(batch, t=t, noise=noise)

    def draw(self, rows: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """The base's randomness."""
        return self.base.draw(rows, generator)

    def augment(self, batch: dict[str, Tensor], draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base's augmentation."""
        return self.base.augment(batch, draws)

    def after_update(self) -> None:
        """The base's."""
        self.base.after_update()

    def sigmas(self, steps: int | None = None) -> Tensor:
        """Noise levels of the base's native sampler; capability "denoise"."""
        return capability(self.base, "denoise").sigmas(steps)

    def denoise(self, x: Tensor, sigma: Tensor, ctx: Context) -> Tensor:
        """The base's denoiser; capability "denoise"."""
        return capability(self.base, "denoise").denoise(x, sigma, ctx)

    def energy(self, x: Tensor, ctx: Context) -> Tensor:
        """The base's energy; capability "energy"."""
        return capability(self.base, "energy").energy(x, ctx)

    def observe(self, obs: Obs) -> Tensor:
        """The base's observation features; capability "observe"."""
        return capability(self.base, "observe").observe(obs)

    @property
    def observation_dim(self) -> int:
        """Length D of what `observe` gives."""
        return capability(self.base, "observe").observation_dim


def weighted_loss(per_sample: Tensor, batch: Mapping[str, Any], logs: Mapping[str, Tensor] | None = None) -> Loss:
    """A loss whose scalar is the mean over samples, weighted by batch["weight"] (B,) where there is one.

    Weights are relative: their mean over the batch is one unit of weight, and a batch without any weight has loss zero.

    Args:
        per_sample: (B,) losses, unweighted.
        batch: the training batch.
        logs: further figures to report.

    Raises:
        SpecError: the weights have another shape.
    """
    weight = batch.get(WEIGHT)
    if weight is None:
        return Loss(per_sample.mean(), per_sample, logs or {})
    if weight.shape != per_sample.shape:
        raise SpecError(f"batch[{WEIGHT!r}] has shape {tuple(weight.shape)}, expected one weight per sample {tuple(per_sample.shape)}")
    weight = weight.to(per_sample.dtype)
    return Loss((weight * per_sample).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny), per_sample, logs or {})


def per_chunk(error: Tensor, batch: Mapping[str, Any], mask_padding: bool) -> Tensor:
    """Errors (B, H) of actions → (B,), the mean over those within the episode, or over all where padding is not masked."""
    if not mask_padding or "action_is_pad" not in batch:
        return error.mean(-1)
    keep = (~batch["action_is_pad"]).to(error.dtype)
    return (error * keep).sum(-1) / keep.sum(-1).clamp(min=1)


def require(policy: Any, name: str, user: str) -> None:
    """Refuse a policy that lacks a capability; wrappers call this in their constructor.

    Raises:
        SpecError: says what is missing and what there is.
    """
    if name not in policy.spec.capabilities:
        have = ", ".join(policy.spec.capabilities) or "none"
        raise SpecError(f"{user} needs a policy with capability {name!r}; {type(policy).__name__} has: {have}")


def capability(policy: Any, name: str) -> Any:
    """`policy`, after `require` found that it has the capability."""
    require(policy, name, "this call")
    return policy


def noise_for(spec: PolicySpec, ctx: Context, n: int, noise: Tensor | None, generator: Generator | None, device: torch.device) -> Tensor:
    """The noise (B, n, *noise_shape) of a sample: the given one after a shape check, or N(0, I).

    Raises:
        SpecError: the given noise has another shape, or n is below 1.
    """
    if n < 1:
        raise SpecError(f"a sample has at least 1 candidate, not {n}")
    shape = (ctx.batch, n, *spec.noise_shape)
    if noise is None:
        return torch.randn(shape, generator=generator, device=device if generator is None else generator.device).to(device)
    if tuple(noise.shape) != shape:
        raise SpecError(f"noise has shape {tuple(noise.shape)}, expected (batch, n, *noise_shape) = {shape}")
    return noise.to(device)
