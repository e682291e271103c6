"""Normal noise that is a function of its place: the same bits on every device, under any cropping or chunking."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import need
from pysora.ops._registry import op

MASK = 0xFFFFFFFF

# Minimax fits in fp32 (largest errors 5e-9 relative, 1.2e-7 and 1.4e-7): see `_normal` for what each stands for.
# csrc/cpu/noise.cpp has the same numbers; tests compare every bit.
LOG = (-0.5, 0.33333454, -0.25000054, 0.19990607, -0.16647768, 0.14482063, -0.1316223, 0.104483135, -0.044909436)
CENTRE = (
    *(2.2960353, 0.34171703, -0.008115585, -0.0011825938, 0.0002764489),
    *(-1.795688e-05, -2.6668918e-06, 6.3170523e-07, -6.0962204e-09, -7.61664e-09),
)
TAIL = (
    *(4.717089, 1.4246343, 0.004639435, -0.0029152094, 0.0015124404),
    *(-0.0009651014, 0.00068646064, -0.00032885466, 4.0342202e-05, 1.6974034e-05),
)
LN2 = 0.6931472


def _check(shape: Sequence[int], seed: int, sample: int, origin: Sequence[int]) -> None:
    need(len(shape) == 4 and min(shape) >= 1, "shape", "(C, T, H, W), each at least 1", tuple(shape))
    need(0 <= seed <= MASK, "seed", "0 to 2**32 - 1", seed)
    need(0 <= sample <= MASK, "sample", "0 to 2**32 - 1", sample)
    need(len(origin) == 3 and min(origin) >= 0, "origin", "(t, y, x), each at least 0", tuple(origin))
    last = max(o + size for o, size in zip(origin, shape[1:], strict=True)) - 1
    need(last <= MASK, "origin", "positions up to 2**32 - 1", last)


def _fake(shape: Sequence[int], seed: int, sample: int, origin: Sequence[int], device: torch.device | None) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32, device=device)


def _philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four 32-bit words (in int64) from four counter words and two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product wraps at 2**64; the mask drops the sign that >> brings in.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return [c0, c1, c2, c3]


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _normal(bits: Tensor) -> Tensor:
    """Map 32 random bits (in int64) to a standard normal number, by the inverse of its distribution.

    The low 31 bits give the tail's probability p in (0, 1/2], the top bit the sign. With w = -log(4p(1-p)) the number
    is (1-2p) * CENTRE(w - 3) where w < 6 and (1-2p) * TAIL(sqrt(w) - 3.5) elsewhere, two polynomials. The logarithm is
    the exponent's bits and t + t*t*LOG(t) for the mantissa 1 + t.
    """
    p = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-32
    q = (p * (1.0 - p) * 4.0).view(torch.int32)
    exponent = (q - 0x3F400000) >> 23  # the mantissa is taken from [3/4, 3/2)
    t = (q - (exponent << 23)).view(torch.float32) - 1.0
    w = -(exponent.to(torch.float32) * LN2 + (t + t * t * _polynomial(t, LOG)))
    root = w.double().sqrt().float()  # torch's fp32 square root is not rounded correctly on every CPU
    centre, tail = _polynomial(w - 3.0, CENTRE), _polynomial(root - 3.5, TAIL)
    z = (1.0 - (p + p)) * torch.where(w < 6.0, centre, tail)
    return torch.where(bits > 0x7FFFFFFF, -z, z)


@op("(int[] shape, int seed, int sample=0, int[] origin=[0, 0, 0], Device? device=None) -> Tensor", _fake)
def noise(
    shape: Sequence[int],
    seed: int,
    sample: int = 0,
    origin: Sequence[int] = (0, 0, 0),
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw standard normal noise, each value a function of (seed, sample, t, y, x, channel) alone.

    A crop, a longer video or a chunk at another origin gives the same values at the same places. The arithmetic is fp32
    add, multiply and square root in a fixed order, never fused, so that every backend can give the same bits. The
    largest value is 6.34, the error against the exact inverse at most 2e-6.

    Args:
        shape: (C, T, H, W).
        seed, sample: 0 to 2**32 - 1; the two words of the key.
        origin: (t, y, x) of the first value, each at least 0.
        device: where the result lies; None is the CPU.

    Returns:
        fp32 `[C, T, H, W]`, contiguous.

    Raises:
        ValueError: a number is out of range.

    Source: Salmon et al. 2011 (Philox4x32-10), counter (t, y, x, channel // 4), word channel % 4.
    """
    _check(shape, seed, sample, origin)
    C, *sizes = shape
    axes = [torch.arange(o, o + size, device=device) for o, size in zip(origin, sizes, strict=True)]
    blocks = torch.arange((C + 3) // 4, device=device)
    grid = torch.meshgrid(blocks, *axes, indexing="ij")
    words = torch.stack(_philox([grid[1], grid[2], grid[3], grid[0]], (seed, sample)), 1)
    return _normal(words.flatten(0, 1)[:C])


def _cpu(
    shape: Sequence[int], seed: int, sample: int, origin: Sequence[int], device: torch.device | str | None
) -> Tensor:
    _check(shape, seed, sample, origin)
    out = torch.empty(tuple(shape), dtype=torch.float32)
    _native.native().noise(_native.borrow(out), seed, sample, list(origin), _native.threads())
    return out


def _cpu_refuses(
    shape: Sequence[int], seed: int, sample: int, origin: Sequence[int], device: torch.device | str | None
) -> str | None:
    return None if device is None or torch.device(device).type == "cpu" else f"device is {device}"


def _on_cuda(
    shape: Sequence[int], seed: int, sample: int, origin: Sequence[int], device: torch.device | str | None
) -> Tensor:
    _check(shape, seed, sample, origin)
    out = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    _cuda.launch("noise", out, out, seed, sample, origin)
    return out


def _on_triton(
    shape: Sequence[int], seed: int, sample: int, origin: Sequence[int], device: torch.device | str | None
) -> Tensor:
    _check(shape, seed, sample, origin)
    out = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    _triton.launch("noise", out, seed, sample, origin, out)
    return out


def _triton_refuses(
    shape: Sequence[int], seed: int, sample: int, origin: Sequence[int], device: torch.device | str | None
) -> str | None:
    reason = _triton.misplaced("the result", torch.device("cpu" if device is None else device))
    return reason or _triton.too_many(math.prod(shape[1:]), "places")


def _cuda_refuses(
    shape: Sequence[int], seed: int, sample: int, origin: Sequence[int], device: torch.device | str | None
) -> str | None:
    reason = _triton.misplaced("the result", torch.device("cpu" if device is None else device))
    return reason or _triton.too_many(math.prod(shape), "values")


noise.register("cuda", _on_cuda, _cuda_refuses, _cuda.unavailable)
noise.register("triton", _on_triton, _triton_refuses, _triton.unavailable)
noise.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
