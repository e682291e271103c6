"""PTX's types in NumPy: sizes, views of registers, and bf16, which NumPy does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SIZE = {
    "pred": 1,
    "f16": 2,
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
    "f32": 4,
    "tf32": 4,
    "f32x2": 8,
    "f64": 8,
    "b128": 16,
    **{f"{kind}{8 * size}": size for kind in "bus" for size in (1, 2, 4, 8)},
}
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NUMPY: dict[str, Any] = {
    **{f"{kind}{8 * size}": UNSIGNED[size] for kind in "bu" for size in UNSIGNED},
    "s8": np.int8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "bf16": np.uint16,
    "pred": np.bool_,
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
    "tf32": np.uint32,
    "f32x2": np.uint64,
}


def is_float(kind: str) -> bool:
    """Return whether a type holds floating-point numbers, alone or in pairs."""
    return kind[0] == "f" or kind.startswith(("bf", "tf"))


def from_bf16(bits: Array) -> Array:
    """Return bf16 bits as fp32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """Return fp32 rounded to nearest, ties to even, as bf16 bits; NaN becomes the GPU's 0x7fff."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def from_half(bits: Array, kind: str) -> Array:
    """Return 16-bit floats (`f16` or `bf16`) as fp32."""
    if kind == "bf16":
        return from_bf16(bits)
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


def to_half(values: Array, kind: str) -> Array:
    """Return fp32 or fp64 as the bits of 16-bit floats (`f16` or `bf16`), rounded to nearest."""
    return to_bf16(values.astype(np.float32)) if kind == "bf16" else values.astype(np.float16).view(np.uint16)


def halves(pairs: Array, kind: str) -> Array:
    """Return packed pairs of 16-bit floats [...] as fp32 [..., 2], the low half first."""
    bits = np.ascontiguousarray(pairs).view(np.uint16).reshape(*pairs.shape, 2)
    return from_half(bits, kind)
