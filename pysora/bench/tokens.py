"""Cases of the ops on tokens: the blocks of the transformer, in shapes of Wan 1.3B and of the embedded model.

The baselines are what a user of torch or diffusers runs today, written as plainly as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pysora import ops
from pysora.bench.case import SCORED, Case, Draw, item
from pysora.ops.linear_int8 import quantize_rows

TOKENS = {"full": 4096, "quick": 320, "tiny": 20}
WIDTH = {"full": 1536, "quick": 256, "tiny": 32}


def adaln(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """x is read and written once."""
    L, D = TOKENS[size], WIDTH[size]

    def plain(x: Tensor, table: Tensor) -> Tensor:
        shift, scale = table[:, :1], table[:, 1:]
        return (F.layer_norm(x.float(), (D,), eps=1e-6) * (1 + scale) + shift).type_as(x)

    return [
        Case(
            "adaln",
            f"{L} tokens of {D}",
            dtype,
            draw=lambda draw: (draw(1, L, D), draw(1, 2, D, fp32=True)),
            ours=ops.adaln,
            rivals={"torch": plain},
            unit="GB/s",
            amount=2 * L * D * item(dtype),
            intensity=4 / item(dtype),
            exact=ops.adaln.reference,
            rotates=size == "full",
        )
    ]


def gate_residual(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """Two inputs are read and one result written."""
    L, D = TOKENS[size], WIDTH[size]

    def plain(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return (x.float() + y * gate).type_as(x)

    return [
        Case(
            "gate_residual",
            f"{L} tokens of {D}",
            dtype,
            draw=lambda draw: (draw(1, L, D), draw(1, L, D), draw(1, D, fp32=True)),
            ours=ops.gate_residual,
            rivals={"torch": plain},
            unit="GB/s",
            amount=3 * L * D * item(dtype),
            intensity=2 / (3 * item(dtype)),
            exact=ops.gate_residual.reference,
            rotates=size == "full",
        )
    ]


def _turned(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS norm over all heads' channels of `[1, L, N, K]`, then rotation by position, step by step."""
    x = F.rms_norm(x.flatten(2), (gain.shape[0],), gain, 1e-6).unflatten(2, (-1, x.shape[3]))
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.empty_like(x)
    turned[..., 0::2] = even * cos[:, None] - odd * sin[:, None]
    turned[..., 1::2] = even * sin[:, None] + odd * cos[:, None]
    return turned


def qk_norm_rope(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """x is read and written once, and so are a cosine and a sine for each pair of a token's channels of one head."""
    L, D = TOKENS[size], WIDTH[size]
    K = {"full": 128, "quick": 64, "tiny": 16}[size]

    return [
        Case(
            "qk_norm_rope",
            f"{L} tokens, {D // K} heads of {K}",
            dtype,
            draw=lambda draw: (
                draw(1, L, D // K, K),
                draw(D),
                draw(L, K // 2, fp32=True).cos(),
                draw(L, K // 2, fp32=True).sin(),
            ),
            ours=ops.qk_norm_rope,
            rivals={"torch": _turned},
            unit="GB/s",
            amount=2 * L * D * item(dtype) + 4 * L * K,
            intensity=3 / item(dtype),
            exact=ops.qk_norm_rope.reference,
            rotates=size == "full",
        )
    ]


def spacetime_attention(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """4*L*L*N*K operations: alone, with scores from 8-bit integers, and with the norm and rotation before it."""
    heads = {"full": [(12, 128), (8, 64)], "quick": [(4, 64)], "tiny": [(2, 16)]}[size]
    lengths = tokens or {"full": (1024, 4096), "quick": (320,), "tiny": (20,)}[size]
    shapes = [(L, N, K) for N, K in heads for L in lengths]
    kinds = [_attention, _attention_int8] if dtype == "bf16" else [_attention]
    cases = [kind(dtype, size, *shape) for kind in kinds for shape in shapes]
    return [*cases, *(_attention_turned(dtype, size, *shape) for shape in shapes if shape[1:] == heads[0])]


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _attended_by_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _attended(q, k, v)


def _attended_exactly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = ops.spacetime_attention.reference(q[:, :SCORED], k, v)
    return out


def _attention(dtype: str, size: str, L: int, N: int, K: int) -> Case:
    return Case(
        "spacetime_attention",
        f"{L} tokens, {N} heads of {K}",
        dtype,
        draw=lambda draw: tuple(draw(1, L, N, K) for _ in range(3)),
        ours=ops.spacetime_attention,
        rivals={"torch": _attended},
        on_cuda={"FlashAttention": _attended_by_flash} if dtype == "bf16" else {},
        unit="GFLOP/s",
        amount=4 * L * L * N * K,
        intensity=L / item(dtype),
        exact=_attended_exactly,
        part=lambda result: result[:, :SCORED],
        length=L,
        rotates=size == "full",
    )


def _attention_int8(dtype: str, size: str, L: int, N: int, K: int) -> Case:
    case = _attention(dtype, size, L, N, K)
    return replace(
        case,
        label=f"{case.label}, int8 scores",
        ours=lambda q, k, v: ops.spacetime_attention(q, k, v, int8=True),
        rivals={"torch": _attended, "pysora bf16": ops.spacetime_attention},
        arguments=lambda q, k, v: (q, k, v, None, None, None, None, False, True),
        on_cuda={},
        cpu_only=True,
        allowed=0.03,
    )


def _attention_turned(dtype: str, size: str, L: int, N: int, K: int) -> Case:
    def draw_all(draw: Draw) -> tuple[Tensor, ...]:
        angles = draw(L, K // 2, fp32=True)
        return *(draw(1, L, N, K) for _ in range(3)), draw(N * K), angles.cos(), angles.sin()

    def ours(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k = (ops.qk_norm_rope(x, gain, cos, sin) for x in (q, k))
        out: Tensor = ops.spacetime_attention(q, k, v)
        return out

    def plain(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _attended(_turned(q, gain, cos, sin), _turned(k, gain, cos, sin), v)

    def exact(q: Tensor, k: Tensor, v: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = ops.qk_norm_rope.reference(q[:, :SCORED], gain, cos[:SCORED], sin[:SCORED])
        return _attended_exactly(q, ops.qk_norm_rope.reference(k, gain, cos, sin), v)

    case = _attention(dtype, size, L, N, K)
    return replace(
        case,
        label=f"{case.label}, norm and rotation before",
        draw=draw_all,
        ours=ours,
        rivals={"torch": plain},
        on_cuda={},
        exact=exact,
        arguments=lambda q, k, v, *_: (q, k, v),
    )


def linear(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """2*L*D*E operations, with the GELU of the feed-forward block; weights as in a bf16 checkpoint."""
    L, D = TOKENS[size] // 4, WIDTH[size]
    E = {"full": 8960, "quick": 1024, "tiny": 48}[size]

    def plain(x: Tensor, weight: Tensor, bias: Tensor, epilogue: str) -> Tensor:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")

    def held(weight: Tensor) -> Tensor:
        return weight.bfloat16().to(weight.dtype)

    return [
        Case(
            "linear",
            f"{L} tokens, {D} to {E}, GELU",
            dtype,
            draw=lambda draw: (draw(1, L, D), held(draw(E, D) / D**0.5), draw(E), "gelu"),
            ours=ops.linear,
            rivals={"torch": plain},
            unit="GFLOP/s",
            amount=2 * L * D * E,
            intensity=2 * L * D * E / (L * D + D * E + L * E) / item(dtype),
            exact=lambda x, *rest: plain(x[:, :SCORED], *rest),
            part=lambda result: result[:, :SCORED],
            rotates=size == "full",
        )
    ]


def linear_int8(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """The same operations, beside layers that round nothing to 8 bits: torch's, and pysora's."""
    L, D = TOKENS[size] // 4, WIDTH[size]
    E = {"full": 8960, "quick": 1024, "tiny": 48}[size]

    def draw_all(draw: Draw) -> tuple[Tensor, ...]:
        weight = draw(E, D) / D**0.5
        return draw(1, L, D), weight, draw(E), *quantize_rows(weight)

    def own(x: Tensor, weight: Tensor, bias: Tensor, rounded: Tensor, scale: Tensor) -> tuple[Any, ...]:
        return x, rounded, scale, bias, "gelu"

    def plain(x: Tensor, weight: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")

    return [
        Case(
            "linear_int8",
            f"{L} tokens, {D} to {E}, GELU",
            dtype,
            draw=draw_all,
            ours=lambda *args: ops.linear_int8(*own(*args)),
            arguments=own,
            rivals={"torch": plain, "pysora linear": lambda x, weight, bias, *_: ops.linear(x, weight, bias, "gelu")},
            unit="GFLOP/s",
            amount=2 * L * D * E,
            intensity=2 * L * D * E / (L * D + D * E + L * E) / item(dtype),
            exact=lambda x, *rest: plain(x[:, :SCORED], *rest),
            part=lambda result: result[:, :SCORED],
            allowed=0.03,
            rotates=size == "full",
        )
    ]


CASES = {
    function.__name__: function
    for function in (adaln, gate_residual, qk_norm_rope, spacetime_attention, linear, linear_int8)
}
