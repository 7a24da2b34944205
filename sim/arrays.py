"""What lets one piece of arithmetic run on NumPy arrays and on torch tensors alike."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def namespace(array: Any) -> Any:
    """The module whose functions take this array: numpy or torch. torch is not imported for it: who has a tensor has it."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def numbers(values: Any) -> Any:
    """Tensors as they are, anything else as an array of double precision."""
    return values if namespace(values) is not np else np.asarray(values, dtype=np.float64)


def single(values: Any) -> Any:
    """The same in single precision."""
    return values.float() if namespace(values) is not np else values.astype(np.float32)


def constant(array: np.ndarray, device: Any) -> Any:
    """A tensor of an array's values on a device: single precision, or as it is where they are whole numbers or truth values."""
    import torch

    values = torch.from_numpy(np.ascontiguousarray(array))
    return values.to(device=device, dtype=torch.float32 if values.is_floating_point() else None)
