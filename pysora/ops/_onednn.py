"""Convolutions by oneDNN, whatever their size and dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops._cpu import multiplies_bf16
from pysora.ops._registry import needs_gradient


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """`F.conv2d` or `F.conv3d`, straight to oneDNN where it can be: on a CPU, without gradients, in fp32 or bf16.

    torch itself gives small fp32 convolutions, and bf16 ones where the processor does not multiply bf16, to loops that
    take many times as long. Such bf16 is multiplied as fp32 here, and the result is fp32: the caller rounds it.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or needs_gradient((x, weight, bias)):
        return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, tuple(stride), tuple(padding))
    if x.dtype == torch.bfloat16 and not multiplies_bf16():
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    return torch.mkldnn_convolution(x, weight, bias, list(padding), list(stride), [1] * len(padding), 1)


def pictures(x: Tensor) -> Tensor:
    """Frames as samples, without a copy where channels lie side by side: `[B, C, T, H, W]` -> `[B*T, C, H, W]`."""
    # torch gives a flattened dimension of size 1 a stride by which it no longer knows the memory format.
    return x[:, :, 0] if x.shape[2] == 1 else x.transpose(1, 2).flatten(0, 1)
