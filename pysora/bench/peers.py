"""Peers that take a plain torch function and compile it: installed beside pysora they become rivals of every case.

Those that need another torch run in environments of their own: benchmarks/peers/run.py.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Function = Callable[..., Any]
Sets = list[tuple[Any, ...]]
Call = Callable[[int], Any]


def inductor(function: Function, sets: Sets, dtype: str) -> Call:
    """torch.compile as torch brings it; needs a C++ compiler."""
    compiled = torch.compile(function, dynamic=False)
    return lambda i: compiled(*sets[i % len(sets)])


def zentorch(function: Function, sets: Sets, dtype: str) -> Call:
    """AMD's plug-in for torch.compile."""
    importlib.import_module("zentorch")
    compiled = torch.compile(function, backend="zentorch", dynamic=False)
    return lambda i: compiled(*sets[i % len(sets)])


def openvino(function: Function, sets: Sets, dtype: str) -> Call:
    """OpenVINO's CPU plug-in. fp32 tensors go in and come out, as is usual there; it computes in the case's dtype."""
    library = importlib.import_module("openvino")
    leaves, form = pytree.tree_flatten(sets[0])
    held = [copy.deepcopy(leaf).float() if isinstance(leaf, nn.Module) else leaf for leaf in leaves]
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.models = nn.ModuleList([leaf for leaf in held if isinstance(leaf, nn.Module)])

        def forward(self, *tensors: Tensor) -> Any:
            values = list(held)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor
            return function(*pytree.tree_unflatten(values, form))

    inputs = [[t.float() for t in pytree.tree_leaves(args) if isinstance(t, Tensor)] for args in sets]
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = library.convert_model(Wrapped().eval(), example_input=tuple(inputs[0]))
    request = library.compile_model(model, "CPU", settings).create_infer_request()
    arrays = [[t.numpy() for t in tensors] for tensors in inputs]

    def call(i: int) -> Any:
        results = request.infer(arrays[i % len(arrays)], share_inputs=True, share_outputs=True)
        tensors = [torch.from_numpy(results[k]) for k in range(len(results))]
        return tensors[0] if len(tensors) == 1 else tensors

    return call


PEERS: dict[str, Callable[[Function, Sets, str], Call]] = {
    "inductor": inductor,
    "zentorch": zentorch,
    "openvino": openvino,
}


def installed(device: str = "cpu") -> list[str]:
    """The peers that are installed and need nothing but to be called; inductor, which compiles C++, is asked for."""
    if device != "cpu":
        return []
    return [name for name in ("zentorch", "openvino") if importlib.util.find_spec(name) is not None]


def check(names: Sequence[str], device: str = "cpu") -> None:
    """Raise ValueError where a peer is unknown, not installed, or not made for the device."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peers must be among {', '.join(PEERS)}, got {name}")
        if name != "inductor" and device != "cpu":
            raise ValueError(f"{name} runs on the CPU alone, got device {device}")
        if name != "inductor" and importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed here; benchmarks/peers/run.py makes an environment for it")
