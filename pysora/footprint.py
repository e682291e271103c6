"""How much memory a generation needs above the model, computed before it starts.

Each stage's need is its largest simultaneous set of activations. The counts of live tensors below were fitted to the
allocations of the plain-torch references, which need the most; a test holds them against measured peaks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from pathlib import Path

import torch

from pysora import ops
from pysora.models.dit import DiTConfig
from pysora.models.vae import VAEConfig

FP32 = 4


def denoising(config: DiTConfig, batch: int, grid: tuple[int, int, int], text_rows: int, itemsize: int) -> int:
    """Bytes of one call of the transformer and of the sampler's state.

    grid: tokens (t, h, w). text_rows: keys of the cross-attention. itemsize: bytes of the model's dtype.
    """
    L, D, N = math.prod(grid), config.width, config.num_attention_heads
    # Residual, normed input, q, k, v; fp32 copies while q and k are normed and rotated.
    attention = D * (5 * itemsize + 3 * FP32)
    # Residual, input and output; the hidden layer before and after its activation.
    feed_forward = D * (3 * itemsize + FP32) + 2 * config.ffn_dim * itemsize
    # The plain-torch attention writes out the scores against the text.
    scores = 3 * N * text_rows * FP32 if ops.explain("spacetime_attention").backend == "reference" else 0
    text = 4 * config.num_layers * text_rows * D * itemsize
    latents = L * math.prod(config.patch_size) * config.in_channels * 10 * FP32
    return batch * (L * max(attention, feed_forward, 4 * D * FP32 + scores) + text + latents)


def decoding(config: VAEConfig, frames: int, height: int, width: int, itemsize: int) -> int:
    """Bytes of decoding one video, a latent frame at a time, without the finished frames.

    frames, height, width: of the video, in pixels.
    """
    base = config.decoder_base_dim or config.base_dim
    widths = [base * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
    temporal = [*reversed(config.temperal_downsample), False]
    pixels = height // config.scale_factor_spatial * (width // config.scale_factor_spatial)
    several, f = frames > 1, 1
    largest, caches = 0, 4 * 2 * widths[0] * pixels
    for i, (inner, outer) in enumerate(itertools.pairwise(widths)):
        caches += (2 * config.num_res_blocks + 2) * 2 * max(inner, outer) * pixels
        largest = max(largest, max(inner, outer) * f * pixels)
        if i < len(config.dim_mult) - 1:
            pixels *= 4
            f *= 2 if temporal[i] and several else 1
            largest = max(largest, outer * f * pixels)
    # Of the largest level: tensors in the model's dtype, and fp32 copies while they are normed and scaled.
    live = 4 * itemsize + 5 * FP32 if config.is_residual else 3 * itemsize + 3 * FP32
    return live * largest + caches * FP32


def available(device: torch.device) -> int:
    """Bytes of memory that the device has in all; on the CPU less where a container's limit is lower."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        # Absent on this machine, or "max": no limit.
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(path.read_text(encoding="ascii")))
    return total


def readable(count: float) -> str:
    """Bytes in words: 1.5 GiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} {units[power]}" if power == 0 or count >= 100 else f"{count:.1f} {units[power]}"
