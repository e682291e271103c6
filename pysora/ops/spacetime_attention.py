"""Attention over all tokens of a clip, or over several clips packed end to end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import at_least_fp32, need, need_shape
from pysora.ops._registry import needs_gradient, op
from pysora.ops.linear_int8 import LARGEST

FEWEST_KEYS = 1024
"""With fewer keys 8-bit scores gain nothing: rounding takes what the products save."""
_EXACT_ONLY = "8-bit scores are not there on a GPU"


def int8_gains(q: Tensor, k: Tensor) -> bool:
    """Whether the CPU's kernel is faster with 8-bit scores: with many keys, and not beside a matrix unit's exact
    products, which are the smaller part of the time."""
    return k.shape[1] >= FEWEST_KEYS and not _native.matrix_unit(q.dtype)


def _check(
    q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, q_offsets: Tensor | None, k_offsets: Tensor | None
) -> None:
    need(q.ndim == 4, "q", "[B, Lq, N, K]", list(q.shape))
    need(k.ndim == 4, "k", "[B, Lk, N, K]", list(k.shape))
    B, _, N, K = q.shape
    need_shape(k, "k", "[B, Lk, N, K]", (B, k.shape[1], N, K))
    need_shape(v, "v", "[B, Lk, N, K]", (B, k.shape[1], N, K))
    need(q.dtype == k.dtype == v.dtype, "q, k, v", "one dtype", f"{q.dtype}, {k.dtype}, {v.dtype}")
    if key_bias is not None:
        need_shape(key_bias, "key_bias", "[B, Lk]", (B, k.shape[1]))
    need((q_offsets is None) == (k_offsets is None), "q_offsets, k_offsets", "both or neither", "one")
    if q_offsets is not None and k_offsets is not None:
        need(B == 1, "q", "B = 1 where offsets are given", B)
        for name, offsets in (("q_offsets", q_offsets), ("k_offsets", k_offsets)):
            need(offsets.ndim == 1 and offsets.shape[0] >= 2, name, "[S+1]", list(offsets.shape))
            need(offsets.dtype == torch.int32, name, "int32", offsets.dtype)
            _check_ends(offsets, name, (q if offsets is q_offsets else k).shape[1])
        need_shape(k_offsets, "k_offsets", "[S+1] as q_offsets", tuple(q_offsets.shape))


def _check_ends(offsets: Tensor, name: str, L: int) -> None:
    """Check the values too, where looking at them costs nothing: not on a GPU and not while tracing."""
    if type(offsets) is Tensor and offsets.device.type == "cpu":
        values = offsets.tolist()
        need(values[0] == 0 and values[-1] == L and sorted(values) == values, name, f"offsets from 0 to {L}", values)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    return_lse: bool,
    int8: bool,
) -> tuple[Tensor, Tensor]:
    _check(q, k, v, key_bias, q_offsets, k_offsets)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    B, Lq, N, _ = q.shape
    return out, q.new_empty((B, N, Lq) if return_lse else 0, dtype=at_least_fp32(q.dtype))


def _pack(result: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if isinstance(result, tuple):
        return result
    return result, result.new_empty(0, dtype=at_least_fp32(result.dtype))


def _unpack(packed: tuple[Tensor, Tensor], *args: Any) -> Tensor | tuple[Tensor, Tensor]:
    return packed if args[-2] else packed[0]


def _segments(offsets: Tensor, L: int) -> Tensor:
    """Return the number of each token's sample, int64 `[L]`."""
    return torch.searchsorted(offsets[1:].contiguous(), torch.arange(L, device=offsets.device), right=True)


@op(
    "(Tensor q, Tensor k, Tensor v, float? scale=None, Tensor? key_bias=None, Tensor? q_offsets=None, "
    "Tensor? k_offsets=None, bool return_lse=False, bool int8=False) -> (Tensor, Tensor)",
    _fake,
    _pack,
    _unpack,
)
def spacetime_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    key_bias: Tensor | None = None,
    q_offsets: Tensor | None = None,
    k_offsets: Tensor | None = None,
    return_lse: bool = False,
    int8: bool = False,
) -> Any:
    """Attend from every query to every key of its sample: `softmax(scale * q k + key_bias) v`, softmax in fp32.

    A query without keys (or whose keys all have the bias -inf) gives 0 and the logarithm -inf.

    Args:
        q: `[B, Lq, N, K]`, fp32 or bf16, any strides.
        k, v: `[B, Lk, N, K]`, dtype of q, any strides.
        scale: factor of the scores; None is 1/sqrt(K).
        key_bias: `[B, Lk]`, float, added to the scores of a key: `log(n)` makes a key count n times, -inf hides it.
        q_offsets, k_offsets: int32 `[S+1]`, from 0 to Lq and Lk, rising: B is 1 and sample s is the tokens
            `offsets[s]` to `offsets[s+1]`. Both or neither.
        return_lse: also return the logarithm of the sum of the exponentials of the scores.
        int8: an approximation: scores from queries and keys of 8-bit integers. A query, and a key without the mean of
            those of its sample (but hidden ones), is divided by 1/127 of its largest magnitude and rounded; sums are
            exact.

    Returns:
        `[B, Lq, N, K]`, contiguous, dtype of q; with `return_lse` a pair of it and fp32 `[B, N, Lq]`.

    Raises:
        ValueError: a shape or dtype does not fit.

    Source: Vaswani et al. 2017, equation 1; the packed form and the logarithm as Dao 2023 (FlashAttention-2);
    8-bit scores after Zhang et al. 2024 (arXiv:2410.02367, SageAttention).
    """
    _check(q, k, v, key_bias, q_offsets, k_offsets)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    bias = None
    if key_bias is not None:
        bias = key_bias[:, None, None, :].to(at_least_fp32(q.dtype))
    if q_offsets is not None and k_offsets is not None:
        same = _segments(q_offsets, q.shape[1])[:, None] == _segments(k_offsets, k.shape[1])
        hidden = torch.zeros_like(same, dtype=at_least_fp32(q.dtype)).masked_fill(~same, float("-inf"))
        bias = hidden if bias is None else bias + hidden
    heads = [t.transpose(1, 2) for t in (q, k, v)]
    with torch.autocast(q.device.type, enabled=False):
        if not int8 and not return_lse and bias is None and k.shape[1] > 0:
            if q.device.type == "cpu" and needs_gradient((q, k, v)):
                # There, torch's backward pass takes twice as long in bf16 as in fp32.
                heads = [t.to(at_least_fp32(q.dtype)) for t in heads]
            out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=scale)
            return out.transpose(1, 2).to(q.dtype).contiguous()
        wide = [t.to(at_least_fp32(q.dtype)) for t in heads]
        scores = (_rounded_scores(wide[0], wide[1], key_bias, k_offsets) if int8 else wide[0] @ wide[1].mT) * scale
        scores = scores if bias is None else scores + bias
        lse = scores.logsumexp(-1)
        weights = (scores - lse.masked_fill(lse == float("-inf"), 0.0).unsqueeze(-1)).exp()
        out = (weights @ wide[2]).transpose(1, 2).to(q.dtype).contiguous()
    return (out, lse) if return_lse else out


def _rounded_scores(q: Tensor, k: Tensor, key_bias: Tensor | None, k_offsets: Tensor | None) -> Tensor:
    """Products of q `[B, N, Lq, K]` and k `[B, N, Lk, K]` rounded to 8 bits; keys without their sample's mean, whose
    products are added."""
    mean = _mean(k, key_bias, k_offsets)
    (a, a_scale), (b, b_scale) = _rounded(q), _rounded(k - mean)
    # Sums of integers are exact in float64.
    sums = (a.double() @ b.double().mT).to(q.dtype)
    return sums * a_scale * b_scale.mT + q @ mean.mT


def _mean(k: Tensor, key_bias: Tensor | None, k_offsets: Tensor | None) -> Tensor:
    """For each key of `[B, N, L, K]` the mean of those of its sample that are not hidden."""
    B, N, L, K = k.shape
    shown = k.new_ones(B, L) if key_bias is None else (key_bias > float("-inf")).to(k.dtype)
    samples = 1 if k_offsets is None else k_offsets.shape[0] - 1
    sample = torch.zeros(L, dtype=torch.int64, device=k.device) if k_offsets is None else _segments(k_offsets, L)
    visible = k.masked_fill(shown[:, None, :, None] == 0, 0.0)
    total = k.new_zeros(B, N, samples, K).index_add(2, sample, visible)
    count = k.new_zeros(B, samples).index_add(1, sample, shown).clamp(min=1)
    return (total / count[:, None, :, None])[:, :, sample]


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of integers from -127 to 127, `[..., K]`, and what 1 stands for in each, `[..., 1]`."""
    top = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    return (x * torch.where(top > 0, LARGEST / top, 0.0)).round(), top / LARGEST


def _cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    return_lse: bool,
    int8: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = _fake(q, k, v, scale, key_bias, q_offsets, k_offsets, return_lse, int8)
    out = _native.placed(out)
    B, _, N, K = q.shape
    samples = B if k_offsets is None else k_offsets.shape[0] - 1
    threads = _native.threads()
    scratch = _native.workspace(_native.native().spacetime_attention_workspace(samples * N, k.shape[1], K, threads))
    _native.native().spacetime_attention(
        *map(_native.borrow, (q, k, v)),
        K**-0.5 if scale is None else scale,
        *map(_native.borrow, (key_bias, q_offsets, k_offsets)),
        int8,
        *map(_native.borrow, (out, lse if return_lse else None, scratch)),
        threads,
    )
    return (out, lse) if return_lse else out


def _cpu_refuses(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    return_lse: bool,
    int8: bool,
) -> str | None:
    return (
        _native.refuses(_native.NATIVE_DTYPES, q=q)
        or _native.refuses((q.dtype,), k=k, v=v)
        or _native.refuses((torch.float32,), key_bias=key_bias)
        or _native.refuses((torch.int32,), q_offsets=q_offsets, k_offsets=k_offsets)
    )


def _on_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    return_lse: bool,
    int8: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = _fake(q, k, v, scale, key_bias, q_offsets, k_offsets, return_lse, int8)
    factor, logarithms = q.shape[3] ** -0.5 if scale is None else scale, lse if return_lse else None
    offsets = (q_offsets, k_offsets, False)
    _cuda.launch("spacetime_attention", out, q, k, v, factor, key_bias, *offsets, out, logarithms, None)
    return (out, lse) if return_lse else out


def _on_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    return_lse: bool,
    int8: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = _fake(q, k, v, scale, key_bias, q_offsets, k_offsets, return_lse, int8)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    offsets = (q_offsets, k_offsets)
    _triton.launch("spacetime_attention", out, q, k, v, factor, key_bias, *offsets, out, lse if return_lse else None)
    return (out, lse) if return_lse else out


def _triton_refuses(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    return_lse: bool,
    int8: bool,
) -> str | None:
    if int8:
        return _EXACT_ONLY
    if scale is not None and not scale > 0:
        return f"scale is {scale}, not above 0"
    reason = (
        _triton.refuses((torch.bfloat16, torch.float16), q.device, q=q)
        or _triton.refuses((q.dtype,), q.device, k=k, v=v)
        or _triton.refuses(_triton.DTYPES, q.device, key_bias=key_bias)
        or _triton.refuses((torch.int32,), q.device, q_offsets=q_offsets, k_offsets=k_offsets)
        or _native.scattered(q=q, k=k, v=v, q_offsets=q_offsets, k_offsets=k_offsets)
    )
    if reason is None and not (1 <= q.shape[-1] <= 64 or q.shape[-1] == 128):
        reason = f"heads are {q.shape[-1]} wide, not 1 to 64 or 128"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if reason is None and tensor.ndim == 4 and tensor.stride(1) >= 2**24:
            reason = f"the tokens of {name} are {tensor.stride(1)} values apart, at least 2**24"
    return reason


def _cuda_refuses(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    key_bias: Tensor | None,
    q_offsets: Tensor | None,
    k_offsets: Tensor | None,
    return_lse: bool,
    int8: bool,
) -> str | None:
    if int8:
        return _EXACT_ONLY
    reason = (
        _triton.refuses((torch.bfloat16, torch.float16), q.device, q=q)
        or _triton.refuses((q.dtype,), q.device, k=k, v=v)
        or _triton.refuses((torch.float32,), q.device, key_bias=key_bias)
        or _triton.refuses((torch.int32,), q.device, q_offsets=q_offsets, k_offsets=k_offsets)
        or _native.scattered(q=q, k=k, v=v, q_offsets=q_offsets, k_offsets=k_offsets)
        or _cuda.unaligned(q=q, k=k, v=v)
    )
    if reason is None and q.shape[-1] not in (64, 128):
        reason = f"heads are {q.shape[-1]} wide, not 64 or 128"
    return reason or _triton.too_many(max(q.numel(), k.numel()) // max(1, q.shape[-1]), "heads of all tokens")


spacetime_attention.register("cuda", _on_cuda, _cuda_refuses, _cuda.unavailable)
spacetime_attention.register("triton", _on_triton, _triton_refuses, _triton.unavailable)
spacetime_attention.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
