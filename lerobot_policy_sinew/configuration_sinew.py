"""Settings of the policy type "sinew", in LeRobot's way: kept in config.json, settable as --policy.<field>."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import DiffuserSchedulerConfig


@PreTrainedConfig.register_subclass("sinew")
@dataclass
class SinewConfig(PreTrainedConfig):
    """A policy of Sinew."""

    kind: str = "flow"
    """Type of the policy: what `policies.registry` lists, and what is made without another policy."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the kind's own config that shall not have their defaults: {"backbone": "unet"}."""
    n_obs_steps: int = 1
    """Observations that are looked at together."""
    horizon: int = 16
    """Actions in a chunk."""
    n_action_steps: int = 8
    """Actions executed of each chunk."""
    sampling_steps: int | None = None
    """Steps of a sample; the policy's own if left out."""
    rate_hz: float = 30.0
    """Actions per second; a dataset's own once it is known."""
    action_low: list[float] = field(default_factory=list)
    """Smallest action per element of the data trained on, physical units; filled in from the dataset."""
    action_high: list[float] = field(default_factory=list)
    """Largest action per element, like `action_low`."""
    optimizer_lr: float = 1e-3
    """Peak learning rate of AdamW; cosine to zero after the warm-up."""
    optimizer_weight_decay: float = 1e-6
    """Decoupled weight decay."""
    optimizer_grad_clip_norm: float = 1.0
    """Largest norm of the gradient."""
    scheduler_warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.IDENTITY,
            "ENV": NormalizationMode.IDENTITY,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )
    """Observations are normalised inside the policy; actions are in [-1, 1] outside of it, as Sinew's policies take and give them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.horizon or self.n_obs_steps < 1:
            raise ValueError(f"n_action_steps {self.n_action_steps} must be in 1..{self.horizon}, the horizon; n_obs_steps at least 1")
        if self.normalization_mapping.get("ACTION") is not NormalizationMode.MIN_MAX:
            raise ValueError("actions of a sinew policy are normalised by MIN_MAX: leave normalization_mapping as it is")

    @property
    def observation_delta_indices(self) -> list[int]:
        """The newest observation and those before it."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk, from the newest observation on."""
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """None: rewards are not looked at."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW."""
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay, betas=(0.9, 0.999),
                           grad_clip_norm=self.optimizer_grad_clip_norm)  # fmt: skip

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        """Linear warm-up, then half a cosine."""
        return DiffuserSchedulerConfig(name="cosine", num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Refuse what no policy of Sinew can take."""
        if not self.input_features or self.action_feature is None:
            raise ValueError("a sinew policy needs at least one observation and the feature 'action'")
