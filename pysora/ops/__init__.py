"""The operations of pysora: each is called as its reference, with `backend=` to name an implementation."""

from pysora.ops._registry import BACKENDS, OPS, Explanation, Op, explain
from pysora.ops.adaln import adaln
from pysora.ops.causal_conv3d import causal_conv3d
from pysora.ops.gate_residual import gate_residual
from pysora.ops.linear import linear
from pysora.ops.linear_int8 import linear_int8
from pysora.ops.noise import noise
from pysora.ops.norm_silu import norm_silu
from pysora.ops.patch_embed import patch_embed
from pysora.ops.qk_norm_rope import qk_norm_rope
from pysora.ops.sampler_step import sampler_step
from pysora.ops.spacetime_attention import spacetime_attention
from pysora.ops.unpatchify import unpatchify

__all__ = [
    "BACKENDS",
    "OPS",
    "Explanation",
    "Op",
    "adaln",
    "causal_conv3d",
    "explain",
    "gate_residual",
    "linear",
    "linear_int8",
    "noise",
    "norm_silu",
    "patch_embed",
    "qk_norm_rope",
    "sampler_step",
    "spacetime_attention",
    "unpatchify",
]
