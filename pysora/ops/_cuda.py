"""What the native CUDA backend of every op shares: whether it runs here, and the launch. Its refusals are Triton's."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from pysora.ops import _cpu


@functools.cache
def unavailable() -> str | None:
    """Return why the extension's CUDA kernels cannot run on this machine, or None."""
    if reason := _cpu.unavailable():
        return reason
    if not _cpu.native().build_info()["cuda_targets"]:
        return "the extension was built without a CUDA compiler"
    return None if torch.cuda.device_count() else "there is no CUDA device"


def launch(op: str, out: Tensor, *args: Any) -> None:
    """Call the extension's function on the device of `out`, on its current stream.

    Args:
        args: what the function takes before its threads and its stream; tensors may lie inside lists.
    """
    if out.numel() == 0:
        return
    stream = torch._C._cuda_getCurrentRawStream(out.device.index)
    getattr(_cpu.native(), op)(*map(_borrowed, args), threads=1, stream=stream)


def unaligned(**tensors: Tensor) -> str | None:
    """Return why kernels that read nothing but whole 16 bytes cannot take these tensors, or None."""
    for name, tensor in tensors.items():
        if tensor.data_ptr() % 16:
            return f"{name} does not start at a multiple of 16 bytes"
        for i, (size, stride) in enumerate(zip(tensor.shape[:-1], tensor.stride(), strict=False)):
            if size > 1 and stride * tensor.element_size() % 16:
                return f"{name} has a stride of {stride} in dimension {i}, not a multiple of 16 bytes"
    return None


def _borrowed(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_borrowed(v) for v in value]
    return _cpu.borrow(value) if isinstance(value, Tensor) else value
