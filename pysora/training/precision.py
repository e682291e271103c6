"""The precision that training computes in."""

from __future__ import annotations

import torch

from pysora.ops._cpu import multiplies_bf16


def autocast() -> torch.autocast:
    """bf16 where this processor multiplies it, else fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16())
