"""The CUDA kernel of `patch_embed`, executed on the CPU."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
import torch.nn.functional as F
from close import check, part, strided, transposed
from gpu.launcher import DTYPES, Counts, Launcher, Memory, array
from torch import Tensor

KINDS = {  # the PTX of both types differs in the opcodes' types alone
    "bf16, sm_80": (torch.bfloat16, "compute_80"),
    "fp16, sm_80": (torch.float16, "compute_80"),
    "bf16, sm_90": (torch.bfloat16, "compute_90"),
}
TOKENS = FEATURES = 64  # of a block and of a step


class PatchEmbedParams(ctypes.Structure):
    """csrc/include/pysora/patch_embed.h"""

    _fields_ = (
        ("video", ctypes.c_void_p),
        ("video_shape", ctypes.c_int64 * 5),
        ("video_strides", ctypes.c_int64 * 5),
        ("weight", ctypes.c_void_p),
        ("weight_shape", ctypes.c_int64 * 5),
        ("weight_strides", ctypes.c_int64 * 5),
        ("bias", ctypes.c_void_p),
        ("bias_stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("workspace", ctypes.c_void_p),
        ("threads", ctypes.c_int),
    )


def launch(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    arch: str = "compute_80",
    shift: int = 0,
    text: str | None = None,
) -> tuple[Tensor, Counts, Launcher]:
    """Run the kernel; return its result, its counts and the launcher."""
    memory = Memory(shift)
    L = math.prod(size // patch for size, patch in zip(video.shape[2:], weight.shape[2:], strict=True))
    out = torch.full((video.shape[0], L, weight.shape[0]), torch.nan, dtype=video.dtype)
    params = PatchEmbedParams(
        *(memory.address(video), array(video.shape), array(video.stride())),
        *(memory.address(weight), array(weight.shape), array(weight.stride())),
        *(memory.address(bias), 0 if bias is None else bias.stride(0)),
        *(memory.address(out), DTYPES[video.dtype]),
    )
    launcher = Launcher("patch_embed", PatchEmbedParams, arch, text)
    return out, launcher(params, memory), launcher


def tensors(shape: tuple[int, ...], D: int, patch: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return a video, weights and a bias."""
    return [t.to(dtype) for t in (torch.randn(shape), torch.randn(D, shape[1], *patch), torch.randn(D))]


def plain(video: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The strided convolution that it is."""
    return F.conv3d(video, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)


CASES = {  # video [B, C, T, H, W], D and patch
    "a model's, ragged": ((2, 16, 3, 6, 16), 96, (1, 2, 2)),
    "192 values of a patch": ((1, 48, 1, 6, 24), 72, (1, 2, 2)),
    "144 values of a patch": ((1, 36, 1, 4, 8), 64, (1, 2, 2)),
    "odd": ((1, 3, 5, 9, 15), 37, (1, 3, 3)),
    "narrow rows": ((1, 4, 1, 10, 14), 65, (1, 2, 2)),
    "deep patch": ((1, 5, 4, 4, 6), 70, (2, 2, 3)),
    "one": ((1, 1, 1, 1, 1), 1, (1, 1, 1)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_accuracy(case, kind):
    dtype, arch = kind
    args = tensors(*case, dtype)
    check(launch(*args, arch=arch)[0], plain, args)


def test_without_bias():
    args = tensors((1, 8, 1, 4, 16), 72, (1, 2, 2), torch.bfloat16)[:2]
    check(launch(*args)[0], plain, args)


LAYOUTS = {
    "every other": strided,
    "transposed": transposed,
    "one sample repeated": lambda t: t[:1].expand_as(t) if t.ndim == 5 and t.shape[0] == 2 else t,
    "part of the channels": lambda t: part(t, 1) if t.ndim == 5 else t,
    "part of the columns": lambda t: part(t, t.ndim - 1),
}


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 1)], ids=["pairs", "single values"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides(layout, patch):
    """Strides do not change a bit, where they forbid 128-bit accesses neither."""
    views = [layout(t) for t in tensors((2, 4, 2, 2, 8), 16, patch, torch.bfloat16)]
    assert torch.equal(launch(*views)[0], launch(*(t.contiguous() for t in views))[0])


def test_alignment():
    """Single accesses where tensors start between multiples of 16 bytes."""
    args = tensors((1, 4, 1, 4, 16), 24, (1, 2, 2), torch.bfloat16)
    moved, counts, _ = launch(*args, shift=2)
    assert counts.wide_share() == 0
    assert torch.equal(moved, launch(*args)[0])


def test_nothing_to_do():
    assert launch(torch.zeros(0, 2, 1, 4, 4).bfloat16(), torch.zeros(3, 2, 1, 2, 2).bfloat16())[0].shape == (0, 4, 3)


def test_special_values_stay_in_their_token():
    video, weight, bias = tensors((1, 4, 1, 4, 16), 8, (1, 2, 2), torch.float16)
    video[0, 1, 0, 2, 5] = torch.nan
    out = launch(video, weight, bias)[0]
    assert out[0, 8 + 2].isnan().all() and out.isnan().sum() == 8


def test_the_largest_patch_fits_into_every_cards_memory():
    args = tensors((1, 128, 1, 2, 8), 8, (1, 2, 2), torch.bfloat16)
    check(launch(*args)[0], plain, args)


@pytest.mark.parametrize("channels", [16, 48], ids=["64 values", "192 values"])
def test_work(channels):
    """Aligned, as in a model: a multiplication for each 16x8x16 values, each patch gathered once by each block."""
    tokens, D, K = 2 * TOKENS, 3 * FEATURES, channels * 4
    args = tensors((1, channels, 1, 16, 32), D, (1, 2, 2), torch.bfloat16)
    _, counts, launcher = launch(*args)
    mma = sum(n for op, n in launcher.instructions.items() if op.startswith("mma."))
    assert mma == tokens // 16 * (D // 8) * (K // 16)
    [(_, grid, _)] = launcher.launches
    per_block = 2 * (TOKENS * K + FEATURES * K + FEATURES)
    assert grid[0] == 6 and counts.bytes("st") == 2 * tokens * D
    assert counts.bytes() == grid[0] * per_block + counts.bytes("st")
    assert counts.wide_share() >= 0.95 and counts.coalescing() <= 1.05 and counts.conflicts() <= 1.05


def test_a_block_goes_on_to_further_features():
    """Where blocks are many each takes several tiles of features, and gathers its patches once."""
    args = tensors((1, 20, 1, 4, 8), 257 * FEATURES, (1, 2, 2), torch.bfloat16)
    out, _, launcher = launch(*args)
    [(_, grid, _)] = launcher.launches
    assert grid[0] == 129
    check(out, plain, args)
