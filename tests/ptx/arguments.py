"""Kernel arguments: scalars, buffers, and structs passed by value."""

from __future__ import annotations

import ctypes
import struct as packing
from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.dtypes import Array
from ptx.memory import as_array
from ptx.parser import Parameter

AddressOf = Callable[[Array], int]


class Struct:
    """A C struct by value: `Struct(x, np.int64(3), [4, 5], np.int32(1), 1e-5, True, None)`.

    Arrays and tensors become pointers, None a null pointer, int int64_t, float float, bool bool, NumPy scalars
    themselves; a list or tuple is an array or a struct inside. Members are aligned as C++ aligns them.
    """

    def __init__(self, *members: Any) -> None:
        self.members = members

    def arrays(self) -> list[Array]:
        """Return the buffers that the struct points to."""
        return _arrays(self.members)

    def pack(self, address_of: AddressOf) -> bytes:
        """Return the struct's bytes."""
        data, align = _pack(self.members, address_of)
        return data + bytes(-len(data) % align)


def _arrays(members: Any) -> list[Array]:
    found: list[Array] = []
    for member in members:
        if isinstance(member, (list, tuple)):
            found += _arrays(member)
        elif isinstance(member, Struct):
            found += member.arrays()
        elif (array := as_array(member)) is not None:
            found.append(array)
    return found


def _pack(members: Any, address_of: AddressOf) -> tuple[bytes, int]:
    data, widest = b"", 1
    for member in members:
        if isinstance(member, (list, tuple, Struct)):
            inner = member.members if isinstance(member, Struct) else member
            piece, align = _pack(inner, address_of)
            piece += bytes(-len(piece) % align)
        else:
            piece = _scalar(member, address_of)
            align = len(piece)
        data += bytes(-len(data) % align) + piece
        widest = max(widest, align)
    return data, widest


def _scalar(value: Any, address_of: AddressOf) -> bytes:
    if value is None:
        return bytes(8)
    if isinstance(value, (bool, np.bool_)):
        return bytes([bool(value)])
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, int):
        return value.to_bytes(8, "little", signed=value < 0)
    if isinstance(value, float):
        return packing.pack("<f", value)
    array = as_array(value)
    if array is None:
        raise TypeError(f"a struct's member must be a number, an array or None, not {type(value).__name__}")
    return address_of(array).to_bytes(8, "little")


def buffers(args: tuple[Any, ...] | list[Any]) -> list[tuple[int, Array]]:
    """Return the arrays that arguments are or point to, each with its argument's number."""
    found: list[tuple[int, Array]] = []
    for i, value in enumerate(args):
        if isinstance(value, Struct):
            found += [(i, array) for array in value.arrays()]
        elif (array := as_array(value)) is not None:
            found.append((i, array))
    return found


def encode(parameter: Parameter, value: Any, address_of: AddressOf) -> bytes:
    """Return an argument as the bytes of a kernel's parameter."""
    size = parameter.size
    if isinstance(value, Struct):
        data = value.pack(address_of)
    elif isinstance(value, bytes):
        data = value
    elif isinstance(value, (ctypes.Structure, ctypes.Array)):
        data = bytes(value)
    elif (array := as_array(value)) is not None and array.ndim:
        data = address_of(array).to_bytes(8, "little")
    elif value is None:
        data = bytes(size)
    elif isinstance(value, np.generic):
        data = value.tobytes()
    elif parameter.type in ("f32", "f64") or isinstance(value, float):
        data = packing.pack("<f" if size == 4 else "<d", value)
    else:
        data = (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if len(data) != size:
        raise ValueError(f"parameter {parameter.name} takes {size} bytes, not {len(data)}")
    return data
