"""A policy of Sinew behind LeRobot's interface: LeRobot's trainer trains it, its rollout and its hub take it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

import policies
from lerobot_policy_sinew.configuration_sinew import SinewConfig
from sinew.specs import ACTION, TASK, ActionSpec, ObservationSpec, PolicySpec, TensorSpec

TRAINING = ("action_is_pad", "weight")
"""Further entries of a training batch that the loss looks at."""


class SinewPolicy(PreTrainedPolicy):
    """See `SinewConfig`. `policy` inside is Sinew's own; `lerobot_policy_sinew.convert` goes from and to runs of Sinew.

    Args:
        config: with its features filled in.
        dataset_stats: statistics of the data, for a policy that is to be trained; a loaded one has them in its weights.
        dataset_meta: the dataset, for its frame rate.
    """

    config_class = SinewConfig
    name = "sinew"

    def __init__(self, config: SinewConfig, dataset_stats: Mapping[str, Any] | None = None, dataset_meta: Any = None, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        if dataset_meta is not None:
            config.rate_hz = float(dataset_meta.fps)
        if dataset_stats is not None:
            low, high = (np.asarray(dataset_stats[ACTION][name], dtype=float).ravel() for name in ("min", "max"))
            config.action_low, config.action_high = low.tolist(), np.where(high > low, high, low + 1e-3).tolist()
        spec = _spec(config)
        self.policy = policies.make(config.kind, spec, _stats(spec, dataset_stats or {}), config.settings)
        self.config: SinewConfig = config
        self.reset()

    def get_optim_params(self) -> Any:
        """All parameters."""
        return self.parameters()

    def reset(self) -> None:
        """Forget observations and planned actions; called before every episode."""
        self._history: deque[dict[str, Any]] = deque(maxlen=self.config.n_obs_steps)
        self._planned: deque[Tensor] = deque()

    def update(self) -> None:
        """Called by LeRobot's trainer after every optimiser step."""
        self.policy.after_update()

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss of a training batch (B, To, ...), with actions (B, H, A) in [-1, 1] as the preprocessor gives them.

        Args:
            batch: LeRobot's, preprocessed.
            reduction: "mean" for the scalar, "none" for one loss per sample.
        """
        ours = self._ours(batch)
        ours |= {ACTION: batch[ACTION], **{key: batch[key] for key in TRAINING if key in batch}}
        draws = {key: value.to(batch[ACTION].device) for key, value in self.policy.draw(batch[ACTION].shape[0]).items()}
        loss = self.policy.loss(self.policy.augment(ours, draws) if self.training else ours, t=draws.get("t"), noise=draws.get("noise"))
        logs = {name: float(value.detach()) for name, value in loss.logs.items() if value.numel() == 1}
        return (loss.per_sample if reduction == "none" else loss.scalar), {"loss": float(loss.scalar.detach()), **logs}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """Chunk (B, H, A) in [-1, 1] for the newest observation (B, ...); those before it are remembered.

        Args:
            batch: LeRobot's, preprocessed.
            noise: (B, *noise_shape) behind the chunk; drawn where None.
        """
        self.eval()
        self._remember(batch)
        return self._chunk(noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """Next action (B, A) in [-1, 1]; a new chunk is sampled when `n_action_steps` of the last one are used."""
        self.eval()
        self._remember(batch)
        if not self._planned:
            self._planned.extend(self._chunk(noise)[:, : self.config.n_action_steps].unbind(1))
        return self._planned.popleft()

    def _remember(self, batch: Mapping[str, Any]) -> None:
        newest = self._ours(batch)
        if self._history and len(next(iter(self._history[0].values()))) != len(next(iter(newest.values()))):
            self._history.clear()  # another number of worlds
        while len(self._history) < self.config.n_obs_steps - 1:  # an episode's first observation stands for those before it
            self._history.append(newest)
        self._history.append(newest)

    def _chunk(self, noise: Tensor | None) -> Tensor:
        newest = self._history[-1]
        window: dict[str, Any] = {key: torch.stack([step[key] for step in self._history], dim=1) for key in self.policy.spec.observation}
        if TASK in newest:
            window[TASK] = newest[TASK]
        context = self.policy.encode(window)
        shaped = None if noise is None else noise.unsqueeze(1)
        return self.policy.sample(context, noise=shaped, steps=self.config.sampling_steps).actions[:, 0]

    def _ours(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """LeRobot's observations as ours: images (..., 3, H, W) in [0, 1] become (..., H, W, 3) uint8."""
        observation = self.policy.spec.observation
        ours: dict[str, Any] = {}
        for key in observation:
            value = batch[key]
            ours[key] = (value * 255).round().to(torch.uint8).movedim(-3, -1) if key in observation.images else value
        if TASK in batch and isinstance(batch[TASK], list):
            ours[TASK] = batch[TASK]
        return ours


def _spec(config: SinewConfig) -> PolicySpec:
    """What LeRobot's features say, in our words."""
    tensors = {}
    for key, feature in (config.input_features or {}).items():
        shape = tuple(feature.shape)
        image = feature.type is FeatureType.VISUAL
        tensors[key] = TensorSpec(shape=(*shape[1:], shape[0]), dtype="uint8") if image else TensorSpec(shape=shape)
    count = config.action_feature.shape[0]  # type: ignore[union-attr]
    low, high = config.action_low or [-1.0] * count, config.action_high or [1.0] * count
    names = tuple(f"action_{i}" for i in range(count))
    action = ActionSpec(kind="joint_position", low=tuple(low), high=tuple(high), rate_hz=config.rate_hz, names=names)
    return PolicySpec(observation=ObservationSpec(tensors), action=action, horizon=config.horizon, n_obs_steps=config.n_obs_steps)


def _stats(spec: PolicySpec, told: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Mean and standard deviation of every vector; 0 and 1 where the weights will bring them."""
    stats = {}
    for key in spec.observation.vectors:
        shape, found = spec.observation[key].shape, told.get(key, {})
        whole = {"mean": np.zeros(shape), "std": np.ones(shape)}
        stats[key] = {name: np.asarray(found.get(name, whole[name]), dtype=float).reshape(shape) for name in whole}
    return stats
