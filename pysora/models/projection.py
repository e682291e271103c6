"""What the transformer's blocks multiply, exact or in 8-bit integers: both are called alike."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

from torch import Tensor, nn

from pysora import ops
from pysora.ops.linear_int8 import quantize_rows
from pysora.ops.spacetime_attention import int8_gains

M = TypeVar("M", bound=nn.Module)


class Layer(Protocol):
    """What a block calls: x `[..., D]` -> `[..., E]` in x's dtype, after the epilogue "none" or "gelu"."""

    def __call__(self, x: Tensor, epilogue: str = "none") -> Tensor: ...


class Projection(nn.Linear):
    """A linear layer with an epilogue."""

    def forward(self, x: Tensor, epilogue: str = "none") -> Tensor:
        """x `[..., D]` -> `[..., E]`."""
        out: Tensor = ops.linear(x, self.weight, self.bias, epilogue=epilogue)
        return out


class Int8Projection(nn.Module):
    """The same layer with its weight and each token rounded to 8 bits."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, exact: Projection) -> None:
        super().__init__()
        weight, scale = quantize_rows(exact.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if exact.bias is None else exact.bias.detach())

    def forward(self, x: Tensor, epilogue: str = "none") -> Tensor:
        """x `[..., D]` -> `[..., E]`."""
        out: Tensor = ops.linear_int8(x, self.weight, self.scale, self.bias, epilogue=epilogue)
        return out


class Attend(nn.Module):
    """Attention of queries `[B, L, N, K]` to keys and values `[B, R, N, K]`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """-> `[B, L, N, K]`."""
        out: Tensor = ops.spacetime_attention(q, k, v, key_bias=key_bias)
        return out


class Int8Attend(nn.Module):
    """The same with scores from 8-bit integers, where that gains, and not by writing all scores out."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """-> `[B, L, N, K]`."""
        op = ops.spacetime_attention
        values = op.bind((q, k, v), {"key_bias": key_bias, "int8": True})
        gains = int8_gains(q, k) and op.select(values).backend != "reference"
        out: Tensor = op(q, k, v, key_bias=key_bias, int8=gains)
        return out


def in_int8(module: M) -> M:
    """A copy of a module whose products are rounded to 8 bits; all tensors but the weights are the module's own."""
    replaced: dict[int, object] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        if isinstance(part, Projection):
            replaced[id(part)] = Int8Projection(part)
        elif isinstance(part, Attend):
            replaced[id(part)] = Int8Attend()
    return copy.deepcopy(module, replaced)


def int8_bytes(module: nn.Module) -> int:
    """Bytes that `in_int8` takes beside the module."""
    layers = [part.weight for part in module.modules() if isinstance(part, Projection)]
    return sum(weight.numel() + 4 * weight.shape[0] for weight in layers)
