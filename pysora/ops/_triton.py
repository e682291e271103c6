"""What the Triton backend of every op shares: whether it runs here, why it refuses, and the launch."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # the compute capability that the kernels are made for


@functools.cache
def unavailable() -> str | None:
    """Return why Triton kernels cannot run on this machine, or None. Looking does not import Triton."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return None if torch.cuda.is_available() else "there is no CUDA device"


@functools.cache
def _too_old(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    return (
        None if capability >= OLDEST else f"{device} has compute capability {capability[0]}.{capability[1]}, below 8.0"
    )


def misplaced(name: str, device: torch.device) -> str | None:
    """Return why a kernel cannot work on `device`, where the argument `name` is, or None."""
    return _too_old(device) if device.type == "cuda" else f"{name} is on {device}"


def refuses(dtypes: tuple[torch.dtype, ...], device: torch.device, **tensors: Tensor | None) -> str | None:
    """Return why kernels on `device` cannot take these tensors, or None: plain ones of `dtypes`, all of them there."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, not a plain tensor"
        if reason := misplaced(name, tensor.device):
            return reason
        if tensor.device != device:
            return f"{name} is on {tensor.device}, others on {device}"
        if tensor.dtype not in dtypes:
            return f"{name} is {tensor.dtype}"
        if tensor.is_neg() or tensor.is_conj():
            return f"{name} is a lazily negated view"
    return None


def too_many(count: int, what: str) -> str | None:
    """Return the reason where `count`, which kernels keep in 32 bits, does not fit, or None."""
    return f"{count} {what} are more than 2**31 - 1" if count >= 2**31 else None


def padded(*sizes: int) -> int:
    """Return the number of values in a block of these sizes: Triton's are powers of two."""
    return math.prod(1 << max(0, size - 1).bit_length() for size in sizes)


def launch(op: str, out: Tensor, *args: Any) -> None:
    """Call the launcher in `pysora.kernels.<op>` on the device of `out`, on its current stream."""
    if out.numel() == 0:
        return
    with torch.cuda.device_of(out):
        getattr(importlib.import_module(f"pysora.kernels.{op}"), op)(*args)
