"""Rewards: sparse success, shaping by a potential, and a VecEnv whose reward is replaced by one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sinew.protocols import Reward
from sinew.registry import Registry

registry: Registry[Callable[..., Reward]] = Registry("reward")


def make(name: str, **settings: Any) -> Reward:
    """The reward called `name`.

    Raises:
        InputError: there is none; near names are offered.
    """
    from rewards import shaping, sparse  # noqa: F401  each enters its rewards into the registry

    return registry.get(name)(**settings)
