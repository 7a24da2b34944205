"""Settings of the stages of `rl.rl100`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rl.denoising_offline import OfflineConfig
from rl.denoising_online import OnlineConfig
from sinew.errors import InputError

StageName = Literal["offline", "online"]


@dataclass(frozen=True, kw_only=True)
class Rl100Config:
    """Settings. A "step" is one environment step of one world."""

    stages: tuple[StageName, ...] = ("offline", "online")
    """What is done, in this order."""
    steps: int = 100_000
    """Environment steps in all, over all worlds and stages."""
    seed: int = 0
    """Fixes episodes, noise, weights and batches."""
    gamma: float = 0.99
    """Discount per environment step."""
    rollout_steps: int = 20_000
    """Steps that the base plays for the offline stage; 0 for demonstrations alone."""
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    """Settings of the offline stage."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """Settings of the online stage."""
    stop_success: float = 0.99
    """Learning ends early when evaluations reach this success rate …"""
    stop_evaluations: int = 2
    """… this many times in a row."""

    def __post_init__(self) -> None:
        if not self.stages or any(s not in ("offline", "online") for s in self.stages) or len(set(self.stages)) < len(self.stages):
            raise InputError(f"stages {', '.join(self.stages) or 'none'}: name offline, online or both, each once")
        if min(self.steps, self.stop_evaluations) < 1 or self.rollout_steps < 0 or not 0 < self.gamma <= 1:
            raise InputError(
                f"steps {self.steps} and stop_evaluations {self.stop_evaluations} must be at least 1, rollout_steps {self.rollout_steps} "
                f"not negative, gamma {self.gamma} in (0, 1]"
            )
