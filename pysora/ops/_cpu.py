"""What the native CPU backend of every op shares: finding the extension, and the reasons for which it refuses."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
LARGE = 32 << 20
"""Bytes from which glibc's allocator always maps memory anew, whatever was freed before."""


@functools.cache
def _extension() -> tuple[Any, str | None]:
    if importlib.util.find_spec("pysora._C") is None:
        return None, "the compiled extension is not built"
    try:
        return importlib.import_module("pysora._C"), None
    except ImportError as error:
        return None, f"the compiled extension does not load: {error}"


def unavailable() -> str | None:
    """Return why this installation has no native CPU kernels, or None."""
    return _extension()[1]


def native() -> Any:
    """Return the extension module `pysora._C`, which `unavailable` has found."""
    return _extension()[0]


def threads() -> int:
    """Return how many threads a kernel may use: torch's own number."""
    return torch.get_num_threads()


@functools.cache
def multiplies_bf16() -> bool:
    """Return whether oneDNN multiplies bf16 here; where not, torch's own loops take a hundred times as long as fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def matrix_unit(dtype: torch.dtype) -> bool:
    """Return whether the kernels that run multiply `dtype` in a matrix unit (AMX)."""
    return dtype == torch.bfloat16 and unavailable() is None and native().cpu_isa() == "amx_bf16"


def refuses(dtypes: tuple[torch.dtype, ...], **tensors: Tensor | None) -> str | None:
    """Return why the extension cannot borrow these tensors, or None: it takes plain CPU tensors of `dtypes`."""
    for name, tensor in tensors.items():
        # Asked thousands of times for a video, and nearly always this is all there is to ask.
        if tensor is None or (
            type(tensor) in _PLAIN and tensor.device.type == "cpu" and tensor.dtype in dtypes and not tensor.is_neg()
        ):
            continue
        if type(tensor) not in _PLAIN:
            return f"{name} is a {type(tensor).__name__}, not a plain tensor"
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device}"
        return f"{name} is {tensor.dtype if tensor.dtype not in dtypes else 'a lazily negated view'}"
    return None


def scattered(**tensors: Tensor | None) -> str | None:
    """Return why kernels that read whole rows cannot take these tensors, or None: their last stride must be 1."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.ndim and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return f"{name} has a stride of {tensor.stride(-1)} in its last dimension"
    return None


def has_exchange_table() -> bool:
    """Return whether this torch lets native code read a tensor through DLPack's exchange table."""
    return hasattr(Tensor, "__dlpack_c_exchange_api__")


def borrow(tensor: Tensor | None) -> Any:
    """Return what the extension takes for a tensor: itself, or its parts where this torch has no exchange table.

    The parts do not keep the tensor alive: the caller holds it until the kernel has run.
    """
    if tensor is None or has_exchange_table():
        return tensor
    dtype = str(tensor.dtype).removeprefix("torch.")
    return native().Raw(tensor.data_ptr(), dtype, list(tensor.shape), list(tensor.stride()), str(tensor.device))


def placed(out: Tensor) -> Tensor:
    """Return `out`, in large pages where it is large: an allocator maps that anew for every call."""
    if out.nbytes >= LARGE:
        native().use_large_pages(out.data_ptr(), out.nbytes)
    return out


def record(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return what records a call of native code whose gradients are `function`'s."""

    def recorded(*args: Any) -> Any:
        return function.apply(*args)

    return recorded


def need_no_graph() -> None:
    """Raise RuntimeError where autograd would record a native kernel for gradients, which have none of their own."""
    if torch.is_grad_enabled():
        raise RuntimeError("gradients of native kernels have no gradients: name backend='reference' for those")


def workspace(floats: int) -> Tensor:
    """Return fp32 scratch memory."""
    return torch.empty(floats, dtype=torch.float32)
