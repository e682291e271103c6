"""How much memory a generation needs above the model, computed before it starts.

The need is the largest simultaneous set of activations; decoding's is planned in `models/vae_plan.py`. The counts of
live tensors below were fitted to the allocations of the plain-torch references, which need the most; a test holds them
against measured peaks.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import torch

from pysora import ops
from pysora.models.dit import DiTConfig
from pysora.ops.linear import scratch_bytes

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
    latents = L * math.prod(config.patch_size) * config.in_channels * 10 * FP32
    text = texts(config, text_rows, itemsize)
    scratch = max(scratch_bytes(batch * L, D, config.ffn_dim), scratch_bytes(batch * L, config.ffn_dim, D))
    return batch * (L * max(attention, feed_forward, 4 * D * FP32 + scores) + text + latents) + scratch


def texts(config: DiTConfig, text_rows: int, itemsize: int) -> int:
    """Bytes of one video's keys and values of the cross-attention, with and without guidance."""
    return 4 * config.num_layers * text_rows * config.width * itemsize


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
