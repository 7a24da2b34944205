"""One file that holds a training state: safetensors with its numbers as JSON in the header, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sinew.errors import DataError
from sinew.rundir import atomic_write

VERSION = 1


def write_state(path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Replace `path` by this state; a crash leaves the old one or the new one.

    Raises:
        InputError: the disk is full; the old state stays.
    """
    metadata = {"sinew_rl_state": str(VERSION), "numbers": json.dumps(numbers)}
    atomic_write(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote.

    Raises:
        DataError: the file is damaged, foreign or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("sinew_rl_state") != str(VERSION):
                found = metadata.get("sinew_rl_state", "none")
                raise DataError(f"{path} is no training state of version {VERSION} (found {found}); delete it to start again")
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(metadata["numbers"])  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}; delete it to start again") from None


def optimizer_state(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of an optimiser, by position of the parameter."""
    return {f"{name}.{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}


def load_optimizer_state(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}."):
            index, field = key[len(name) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[field] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def module_state(name: str, module: torch.nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a module under `name`."""
    return {f"{name}.{k}": v for k, v in module.state_dict().items()}


def load_module_state(name: str, module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `module_state` took.

    Raises:
        DataError: it is of a module of another shape.
    """
    prefix = f"{name}."
    try:
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as e:
        raise DataError(f"the saved {name} does not fit the one asked for: {' '.join(str(e).split())[:300]}") from None
