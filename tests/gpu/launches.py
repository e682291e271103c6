"""A call of the extension for every CUDA kernel that it holds, in the shapes of public models; none is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu.fake_gpu import FakeGpu, Launch
from ptx.names import readable
from torch import Tensor

from pysora import ops

ON_HOST = {"sampler_step": "coefficients"}  # what is read while launching
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Call = tuple[str, tuple[Any, ...]]


def empty(*shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
    """A tensor whose values nobody looks at."""
    made = torch.empty(shape, dtype=dtype)
    return made.contiguous(memory_format=torch.channels_last_3d) if channels_last else made


def by_tokens(dtype: torch.dtype) -> Iterator[Call]:
    """Ops on tokens, where 128-bit accesses fit and where they do not."""
    for D in (1536, 1533):
        x = empty(1, 64, D, dtype=dtype)
        yield "adaln", (x, empty(1, 2, D))
        yield "gate_residual", (x, x, empty(1, D))
    for N, K in ((12, 128), (3, 6)):
        yield "qk_norm_rope", (empty(1, 64, N, K, dtype=dtype), empty(N * K), empty(64, K // 2), empty(64, K // 2))
    for grid in ((2, 4, 8), (2, 4, 5)):
        yield "unpatchify", (empty(1, grid[0] * grid[1] * grid[2], 64, dtype=dtype), grid, (1, 2, 2))
    if dtype == torch.float32:
        return
    for K in (64, 128):
        q = empty(1, 200, 12, K, dtype=dtype)
        yield "spacetime_attention", (q, q, q)
        yield "spacetime_attention", (q, q, q, None, empty(1, 200))


def on_grids(dtype: torch.dtype) -> Iterator[Call]:
    """Ops on videos and on the sampler's state, where 128-bit accesses fit and where they do not."""
    for C, W, last in ((96, 16, False), (96, 5, False), (96, 16, True), (97, 16, True)):
        yield "norm_silu", (empty(1, C, 2, 5, W, dtype=dtype, channels_last=last), empty(C))
    for R in (1, 3, 8):
        for first in (0, 1):
            state, prediction = empty(4096 + first)[first:], empty(4096 + first, dtype=dtype)[first:]
            yield "sampler_step", (state, prediction, prediction, [state], torch.zeros(R, 3), 5.0)
    if dtype == torch.float32:
        yield "noise", ((16, 5, 60, 104), 1, 0, (0, 0, 0), "cuda:0")
        yield "noise", ((16, 5, 60, 103), 1, 0, (0, 0, 0), "cuda:0")
        return
    yield "patch_embed", (empty(1, 16, 5, 60, 104, dtype=dtype), empty(1536, 16, 1, 2, 2, dtype=dtype))
    for C, out in ((96, 12), (96, 64), (384, 384)):
        x, weight = empty(1, C, 4, 32, 32, dtype=dtype, channels_last=True), empty(out, C, 3, 3, 3, dtype=dtype)
        yield "causal_conv3d", (x, weight, None, None, empty(C))


def on(gpu: Any, name: str, args: Any, put: Callable[[Tensor], Tensor] | None = None) -> list[Any]:
    """Return arguments with their tensors on the fake GPU, where `put` (None: a copy) brings them."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(v) for v in value]
        return (put or gpu.put)(value) if isinstance(value, Tensor) else value

    bound = ops.OPS[name].bind(args, {})
    return [v if n == ON_HOST.get(name) else moved(v) for n, v in zip(ops.OPS[name].names, bound, strict=True)]


def launches(gpu: FakeGpu) -> dict[str, Launch]:
    """What every kernel is launched with, by the kernel's readable name; of several launches the last."""
    found = {}

    def room(t: Tensor) -> Tensor:
        base = t if t._base is None else t._base
        return gpu.empty(base).as_strided(t.shape, t.stride(), t.storage_offset())

    for dtype in DTYPES:
        for name, args in (*by_tokens(dtype), *on_grids(dtype)):
            gpu.reset()
            gpu.execute = False
            there = on(gpu, name, args, room)
            with gpu:
                ops.OPS[name](*there, backend="cuda")
            found |= {readable(launch.kernel): launch for launch in gpu.launches}
    return found
