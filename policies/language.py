"""Instructions beside tensors: observations and batches of language policies hold "task", a list with one text per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinew.errors import InputError
from sinew.specs import PolicySpec

LANGUAGE = "language"
"""Capability of policies whose `encode` and `loss` read "task"."""


def select(values: Mapping[str, Any], rows: slice | np.ndarray | Sequence[int] | Tensor) -> dict[str, Any]:
    """Rows of a batch or observation {key: (B, ...) tensor or list of B texts}."""
    return {
        key: value[rows] if isinstance(value, Tensor) or isinstance(rows, slice) else [value[int(row)] for row in rows]
        for key, value in values.items()
    }


def to_device(values: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A batch or observation with its tensors on `device`; texts stay as they are."""
    return {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in values.items()}


def instructions(instruction: str | Sequence[str] | None, num_envs: int, spec: PolicySpec) -> list[str] | None:
    """The instruction of each of N worlds; None for a policy that takes none.

    Raises:
        InputError: the policy needs one and there is none, it is blank, or their number is not N.
    """
    if LANGUAGE not in spec.capabilities:
        return None
    if instruction is None:
        raise InputError("the policy acts by language and was given no instruction: pass instruction=TEXT, or one text per world")
    texts = [instruction] * num_envs if isinstance(instruction, str) else [str(text) for text in instruction]
    if len(texts) != num_envs:
        raise InputError(f"{len(texts)} instructions given for {num_envs} worlds: give one text, or one per world")
    if not all(text.strip() for text in texts):
        raise InputError("the instruction is blank: say what the policy shall do")
    return texts
