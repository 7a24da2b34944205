"""Policies: encoders, denoisers, wrappers, training, the chunk executor and evaluation.

Names are looked up lazily, so that `import policies` loads neither torch nor a policy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policies.act import ActConfig, ActPolicy
    from policies.base import PolicyModule, Wrapper
    from policies.best_of import BestOfN
    from policies.catalog import make, registry
    from policies.checkpoint import load, save
    from policies.composed import Composed
    from policies.consistency import ConsistencyConfig, ConsistencyPolicy
    from policies.counts import CountConfig, fit_counts
    from policies.diffusion import DiffusionConfig, DiffusionPolicy
    from policies.direct import Direct, DirectConfig
    from policies.edm import EdmConfig, EdmPolicy
    from policies.energy import EnergyConfig, EnergyPolicy
    from policies.executor import ChunkExecutor
    from policies.flow import FlowConfig, FlowPolicy
    from policies.guided import Guided, ValueGuidance
    from policies.realtime import RealTimeGuidance
    from policies.residual import Residual, ResidualConfig
    from policies.steered import LatentSteered, SteeredConfig
    from policies.train import TrainConfig

__all__ = [
    "ActConfig",
    "ActPolicy",
    "BestOfN",
    "ChunkExecutor",
    "Composed",
    "ConsistencyConfig",
    "ConsistencyPolicy",
    "CountConfig",
    "DiffusionConfig",
    "DiffusionPolicy",
    "Direct",
    "DirectConfig",
    "EdmConfig",
    "EdmPolicy",
    "EnergyConfig",
    "EnergyPolicy",
    "FlowConfig",
    "FlowPolicy",
    "Guided",
    "LatentSteered",
    "PolicyModule",
    "RealTimeGuidance",
    "Residual",
    "ResidualConfig",
    "SteeredConfig",
    "TrainConfig",
    "ValueGuidance",
    "Wrapper",
    "fit_counts",
    "load",
    "make",
    "registry",
    "save",
]

_HOMES = {
    "ActConfig": "policies.act",
    "ActPolicy": "policies.act",
    "BestOfN": "policies.best_of",
    "ChunkExecutor": "policies.executor",
    "Composed": "policies.composed",
    "ConsistencyConfig": "policies.consistency",
    "ConsistencyPolicy": "policies.consistency",
    "CountConfig": "policies.counts",
    "DiffusionConfig": "policies.diffusion",
    "DiffusionPolicy": "policies.diffusion",
    "EdmConfig": "policies.edm",
    "EdmPolicy": "policies.edm",
    "EnergyConfig": "policies.energy",
    "EnergyPolicy": "policies.energy",
    "FlowConfig": "policies.flow",
    "FlowPolicy": "policies.flow",
    "Guided": "policies.guided",
    "PolicyModule": "policies.base",
    "RealTimeGuidance": "policies.realtime",
    "Residual": "policies.residual",
    "ResidualConfig": "policies.residual",
    "Direct": "policies.direct",
    "DirectConfig": "policies.direct",
    "LatentSteered": "policies.steered",
    "SteeredConfig": "policies.steered",
    "TrainConfig": "policies.train",
    "ValueGuidance": "policies.guided",
    "Wrapper": "policies.base",
    "fit_counts": "policies.counts",
    "load": "policies.checkpoint",
    "make": "policies.catalog",
    "registry": "policies.catalog",
    "save": "policies.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'policies' has no attribute {name!r}")
    if name in ("registry", "make", "load"):
        import_module("policies.catalog").register_all()
    return getattr(import_module(_HOMES[name]), name)
