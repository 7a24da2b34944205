"""Convolutions over the time of a chunk, which is short: torch's own are made for long signals and slow on it in places.

What is computed is the same; which way is chosen by the numbers of rows and of times, as measured on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW_ROWS = 2
"""Up to so many chunks torch's convolutions over time are several times slower than the matrix products that they are."""
FEW_TIMES = 4
"""Up to so many times the gradient of a convolution's weight is several times slower than the matrix product that it is."""


class TimeConv(nn.Conv1d):
    """Convolution over time, padded by half its odd length; of few rows as a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) → (B, C', L'), L' = L without a stride."""
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return super().forward(x)
        length, stride = self.kernel_size[0], self.stride[0]
        if x.shape[0] > FEW_ROWS:
            times = (x.shape[2] - 1) // stride + 1
            short = times <= FEW_TIMES and self.weight.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu"
            return _ShortConvolution.apply(x, self.weight, self.bias, stride) if short else super().forward(x)
        return functional.linear(_windows(x, length, stride), self.weight.flatten(1), self.bias).transpose(1, 2)


class TimeGrow(nn.ConvTranspose1d):
    """Twice as many times: the transposed convolution of length 4 and stride 2; of few rows as a matrix product."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels, 4, 2, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, L) → (B, C', 2 L)."""
        if x.shape[0] > FEW_ROWS or torch.compiler.is_exporting():
            return super().forward(x, output_size)
        shares = functional.linear(x.transpose(1, 2), self.weight.flatten(1).t()).transpose(1, 2)
        grown = functional.fold(shares, (1, 2 * x.shape[2]), (1, 4), padding=(0, 1), stride=(1, 2)).squeeze(2)
        return grown if self.bias is None else grown + self.bias.unsqueeze(-1)


class _ShortConvolution(torch.autograd.Function):
    """Torch's convolution with the gradient of its weight as one matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv1d(x, weight, bias, stride, weight.shape[2] // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        length, to_x = weight.shape[2], None
        if ctx.needs_input_grad[0]:
            sizes = [ctx.stride], [length // 2], [1], False, [0], 1
            to_x = torch.ops.aten.convolution_backward(gradient, x, weight, None, *sizes, [True, False, False])[0]
        columns = gradient.transpose(0, 1).flatten(1)
        to_weight = columns @ _windows(x, length, ctx.stride).flatten(0, 1)
        return to_x, to_weight.view_as(weight), columns.sum(1), None


def _windows(x: Tensor, length: int, stride: int) -> Tensor:
    """(B, C, L) → what each output sees, (B, L', C * length)."""
    padded = functional.pad(x, (length // 2, length // 2))
    return padded.unfold(2, length, stride).transpose(1, 2).flatten(2)
