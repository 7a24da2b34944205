"""Memory for a policy that is built from a file: no more than the weights beside it can fill, whatever its settings say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from sinew.errors import DataError

SPARE_BYTES, TIMES = 2**28, 4
"""What a policy may take while it is built: this, and this many times the size of its weights' file."""
_FACTORIES = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange, torch.linspace))
_ELSEWHERE = ("device", "generator", "pin_memory", "out")


class Ration(TorchFunctionMode):
    """Within it, tensors are only made until they are together as large as they may be.

    Args:
        file_bytes: size of the file with the weights.
        where: what is built, for the error.
    """

    def __init__(self, file_bytes: int, where: str) -> None:
        super().__init__()
        self._left, self._file_bytes, self._where = SPARE_BYTES + TIMES * file_bytes, file_bytes, where

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what is going to be made, without making it.

        Raises:
            DataError: it is too much.
        """
        kwargs = kwargs or {}
        if func in _FACTORIES:
            bare = {name: value for name, value in kwargs.items() if name not in _ELSEWHERE}
            try:
                planned = func(*args, **bare, device="meta")
                self._left -= planned.numel() * planned.element_size()
            except (RuntimeError, OverflowError):  # a size that has no number
                self._left = -1
            if self._left < 0:
                raise DataError(f"{self._where} describes a policy far larger than the {self._file_bytes} bytes of its weights")
        return func(*args, **kwargs)
