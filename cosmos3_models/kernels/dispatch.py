"""Whether an operation runs as a Triton kernel or as the PyTorch that defines it."""

import importlib
from types import ModuleType

import torch
from torch import Tensor


def fused(x: Tensor) -> bool:
    """Whether the kernels take a tensor: one on a GPU, if no gradients are recorded."""
    return x.is_cuda and not torch.is_grad_enabled()


def fused_video(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors (b, c, t, h, w): those of one video, channels-last."""
    layout = torch.channels_last_3d
    return all(fused(x) and x.shape[0] == 1 and x.is_contiguous(memory_format=layout) for x in tensors)


def kernels(name: str) -> ModuleType:
    """Import a module of kernels. Late, because a machine without a GPU need not have Triton."""
    return importlib.import_module(f"cosmos3_models.kernels.{name}")
