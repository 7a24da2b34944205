"""A run of Sinew as a checkpoint of LeRobot, and back; weights and numbers stay what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType, PolicyFeature

import policies
from lerobot_policy_sinew.configuration_sinew import SinewConfig
from lerobot_policy_sinew.modeling_sinew import SinewPolicy
from lerobot_policy_sinew.processor_sinew import make_sinew_pre_post_processors
from policies.catalog import type_name
from sinew.config import to_json
from sinew.errors import InputError
from sinew.rundir import RunDir
from sinew.specs import ACTION, ENVIRONMENT_STATE, ActionKind


def to_checkpoint(run: RunDir | Path | str, folder: Path | str, *, n_action_steps: int | None = None) -> SinewPolicy:
    """Write the policy of a run as LeRobot's `save_pretrained` would, with its processors.

    Args:
        run: folder of a run.
        folder: receives the checkpoint.
        n_action_steps: actions executed of each chunk; None for all.

    Raises:
        InputError: the policy is built around another one, which LeRobot's config cannot say.
    """
    ours = policies.load(run)
    if ours.wraps:
        raise InputError(f"a {type_name(ours)} policy is built around another: only policies without a base can be converted")
    spec, cameras = ours.spec, ours.spec.observation.images
    config = SinewConfig(
        kind=type_name(ours),
        settings=to_json(ours.config),
        n_obs_steps=spec.n_obs_steps,
        horizon=spec.horizon,
        n_action_steps=n_action_steps or spec.horizon,
        rate_hz=spec.rate_hz,
        action_low=list(spec.action.low),
        action_high=list(spec.action.high),
        input_features={key: _feature(key, tensor.shape, key in cameras) for key, tensor in spec.observation.tensors.items()},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (spec.action_dim,))},
        device="cpu",
        push_to_hub=False,
    )
    theirs = SinewPolicy(config)
    theirs.policy.load_state_dict(ours.state_dict())
    theirs.eval().save_pretrained(folder)
    bounds = {"min": torch.tensor(spec.action.low), "max": torch.tensor(spec.action.high)}
    for processor in make_sinew_pre_post_processors(config, {ACTION: bounds}):
        processor.save_pretrained(folder)
    return theirs


def to_run(source: Path | str, folder: Path | str, *, action_kind: ActionKind) -> policies.PolicyModule:
    """Write a checkpoint of LeRobot's type "sinew" as the policy of a run.

    Args:
        source: folder of the checkpoint.
        folder: receives policy.json and policy.safetensors.
        action_kind: what an action commands, which LeRobot does not know.
    """
    ours = SinewPolicy.from_pretrained(source, strict=True).policy
    ours.spec = replace(ours.spec, action=replace(ours.spec.action, kind=action_kind))
    policies.save(ours, folder)
    return ours


def _feature(key: str, shape: tuple[int, ...], image: bool) -> PolicyFeature:
    if image:
        return PolicyFeature(FeatureType.VISUAL, (shape[-1], *shape[:-1]))
    return PolicyFeature(FeatureType.ENV if key == ENVIRONMENT_STATE else FeatureType.STATE, shape)
