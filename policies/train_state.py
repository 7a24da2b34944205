"""Everything that training needs to go on after a crash as if nothing had happened, in one file replaced whole.

The record (step, sample position, configuration, smoothed loss) rides in the header of train_state.safetensors, so
that tensors and record can never be of two different moments; train_state.json is a copy for people to read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from policies.checkpoint import check_tensors, read_tensors
from policies.ema import Ema
from sinew.errors import DataError, InputError
from sinew.rundir import RunDir, atomic_write

FORMAT_VERSION = 1
TENSORS_NAME = "train_state.safetensors"
JSON_NAME = "train_state.json"
_RECORD = "sinew_train_state"


def save_state(run: RunDir, policy: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, record: dict[str, Any]) -> None:
    """Write the state after a whole step.

    Args:
        run: where to.
        policy: its raw parameters, not the averaged ones.
        optimizer: AdamW over parameters of `policy`.
        ema: the averages of the same parameters, in the order of `trainable`.
        record: JSON values; `restore` gives them back.
    """
    record = {"format_version": FORMAT_VERSION, **record, "ema_updates": ema.updates}
    tensors = {name: t.cpu().contiguous() for name, t in _collect(policy, optimizer, ema).items()}
    atomic_write(run / TENSORS_NAME, to_bytes(tensors, {_RECORD: json.dumps(record)}))
    atomic_write(run / JSON_NAME, json.dumps(record, indent=2) + "\n")


def restore(run: RunDir, policy: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, config: dict[str, Any]) -> dict[str, Any] | None:
    """Put a saved state back into policy, optimiser and averages.

    Args:
        run: where from.
        policy: receives the raw parameters.
        optimizer: AdamW over parameters of `policy`.
        ema: receives the averages.
        config: what the run is to be trained with; must equal record["config"].

    Returns:
        The record, or None where the run has no state yet.

    Raises:
        DataError: the file is damaged, foreign, of another version or of another policy.
        InputError: it belongs to a training with another configuration.
    """
    path = run / TENSORS_NAME
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    try:
        record = json.loads(metadata[_RECORD])
        version, trained = record["format_version"], dict(record["config"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} is not a training state of Sinew: remove it to start over") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format version {version!r}, this Sinew reads {FORMAT_VERSION}: remove it to start over")
    for key in sorted(set(config) | set(trained)):
        had = trained.get(key)
        if config.get(key) != had:
            raise InputError(f"{run.path} was trained with {key} = {had!r}, not {config.get(key)!r}: choose another --out")
    moved = {name.removeprefix("optimizer.step.") for name in tensors if name.startswith("optimizer.step.")}
    _allocate(optimizer, [parameter for name, parameter in trainable(policy).items() if name in moved])
    wanted = _collect(policy, optimizer, ema)
    check_tensors(tensors, wanted, str(path))
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
    ema.updates = record["ema_updates"]
    return record


def trim_metrics(run: RunDir, stage: str, step: int) -> None:
    """Drop a stage's lines of steps that will be taken again, and a torn last line."""
    run.keep_metrics(line for line in run.metrics() if line.get("stage") != stage or line.get("step", 0) <= step)


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def _collect(policy: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> dict[str, Tensor]:
    """Every tensor of the state by name; the tensors are the live ones."""
    tensors: dict[str, Tensor] = {f"policy.{name}": t.detach() for name, t in policy.state_dict().items()}
    for index, (name, parameter) in enumerate(trainable(policy).items()):
        tensors[f"ema.{name}"] = ema.averages[index]
        for entry, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{entry}.{name}"] = value
    return tensors


def _allocate(optimizer: torch.optim.Optimizer, moved: Sequence[nn.Parameter]) -> None:
    """Give AdamW the empty state that its first step would make, to be filled; a parameter that never had a gradient has none."""
    wanted = {id(parameter) for parameter in moved}
    for group in optimizer.param_groups:
        for parameter in (p for p in group["params"] if id(p) in wanted):
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
