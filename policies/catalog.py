"""The table of policy types, and how one is made from specs, statistics and its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch

from policies.base import PolicyModule
from sinew.config import from_json
from sinew.errors import InputError, SpecError
from sinew.registry import Registry
from sinew.specs import PolicySpec

registry: Registry[type[PolicyModule]] = Registry("policy")
"""Policy classes by type name. Add one with `@register("name")` in a module listed in `MODULES`."""

MODULES = (
    "policies.flow",
    "policies.diffusion",
    "policies.edm",
    "policies.energy",
    "policies.act",
    "policies.consistency",
    "policies.relative",
    "policies.planned",
    "policies.residual",
    "policies.steered",
    "policies.direct",
    "policies.bootstrapped",
    "policies.decorated",
    "policies.composed",
    "policies.best_of",
    "policies.guided",
    "policies.flow_q",
    "policies.advantage",
    "policies.vla.policy",
)
"""Modules that register policies when they are imported."""
ON_DEMAND = {"lerobot": "policies.lerobot"}
"""Types that only a foreign package makes, and the modules that register them; imported where a run holds one."""


PolicyClass = TypeVar("PolicyClass", bound=type[PolicyModule])


def register(name: str) -> Callable[[PolicyClass], PolicyClass]:
    """Decorator that enters a policy class under `name` and keeps its type."""

    def enter(cls: PolicyClass) -> PolicyClass:
        registry.add(name)(cls)
        return cls

    return enter


def register_all(wanted: str | None = None) -> None:
    """Import every module that registers a policy, and that of the type `wanted` where it is one of `ON_DEMAND`."""
    for module in MODULES:
        import_module(module)
    if wanted in ON_DEMAND:
        import_module(ON_DEMAND[wanted])


def make(
    name: str,
    spec: PolicySpec,
    stats: Mapping[str, Mapping[str, np.ndarray]],
    config: Any = None,
    *,
    seed: int = 0,
) -> PolicyModule:
    """A fresh policy.

    Args:
        name: type name in `registry`.
        spec: observation, action, horizon and n_obs_steps; the policy fills in the rest.
        stats: {key: {"mean", "std"}} of every vector of the observation, as `EpisodeData.stats` gives.
        config: dataclass of the type, for example `FlowConfig`, or a mapping with some of its fields; None for its defaults.
        seed: fixes the initial weights; the global generator is left as it was.

    Raises:
        InputError: unknown name, or the type wraps another policy and is made from that one.
        SpecError: the spec cannot be served, or the statistics do not fit it.
    """
    register_all()
    cls = registry.get(name)
    if cls.wraps:
        raise InputError(f"policy {name!r} wraps another policy: make that one first, then {cls.__name__}(base, ...)")
    config = from_json(cls.Config, config or {}, f"config of policy {name!r}") if config is None or isinstance(config, Mapping) else config
    if not isinstance(config, cls.Config):
        raise InputError(f"policy {name!r} takes a {cls.Config.__name__}, not a {type(config).__name__}")
    check_spec(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls.build(spec, stats, config)


def check_spec(spec: PolicySpec) -> None:
    """Refuse a spec that no policy can serve.

    Raises:
        SpecError: horizon, observation steps or the shape of an observation are not positive.
    """
    if spec.horizon < 1 or spec.n_obs_steps < 1:
        raise SpecError(f"horizon {spec.horizon} and n_obs_steps {spec.n_obs_steps} must be at least 1")
    for key, tensor in spec.observation.tensors.items():
        image = key in spec.observation.images
        if any(n < 1 for n in tensor.shape) or (image and (len(tensor.shape) != 3 or tensor.shape[-1] != 3 or tensor.dtype != "uint8")):
            raise SpecError(f"observation {key!r} has shape {tensor.shape} {tensor.dtype}; images are (height, width, 3) uint8")


def type_name(policy: PolicyModule) -> str:
    """Name under which the class of `policy` is registered.

    Raises:
        InputError: it is not registered, so it could not be loaded again.
    """
    register_all()
    for name in registry:
        if registry.get(name) is type(policy):
            return name
    raise InputError(f"{type(policy).__name__} is not a registered policy: known are {', '.join(registry)}")
