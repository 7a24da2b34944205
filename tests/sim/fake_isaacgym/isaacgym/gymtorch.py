"""Tensors of PyTorch over the buffers of the simulation."""

import torch

from isaacgym.gymapi import Tensor, need


def wrap_tensor(tensor):
    need(type(tensor) is Tensor, "wrap_tensor takes what acquire_*_tensor gave")
    return torch.from_numpy(tensor.buffer)


def unwrap_tensor(tensor):
    need(isinstance(tensor, torch.Tensor) and tensor.is_contiguous(), "unwrap_tensor takes contiguous tensors of torch")
    need(tensor.dtype in (torch.float32, torch.int32), f"tensors of {tensor.dtype}: states are float32, indices int32")
    return Tensor(tensor.numpy())
