"""`qk_norm_rope` against complex multiplication."""

from __future__ import annotations

import pytest
import torch
from close import check, strided, transposed
from torch import Tensor

from pysora import ops

OP = "qk_norm_rope"
SHAPES = {
    "usual": (2, 7, 3, 16),
    "odd": (1, 5, 3, 6),
    "head 64": (1, 63, 2, 64),
    "head 200": (2, 3, 5, 200),
    "several tasks": (1, 70, 6, 86),
    "one": (1, 1, 1, 2),
}


def plain(x: Tensor, gain: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    wide = x.float() if x.dtype == torch.bfloat16 else x
    rows = wide.flatten(2) if gain.shape[0] != x.shape[3] else wide
    y = (rows / (rows.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain).view(x.shape)
    if cos is not None and sin is not None:
        turn = torch.complex(cos, sin)[:, None]
        y = torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
    return y.to(x.dtype)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, over_heads: bool) -> tuple[Tensor, ...]:
    _, L, N, K = shape
    angle = torch.randn(L, K // 2)
    return torch.randn(shape).to(dtype), torch.randn(N * K if over_heads else K), angle.cos(), angle.sin()


@pytest.mark.parametrize("over_heads", [True, False], ids=["all heads", "each head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_accuracy(runner, shape, dtype, over_heads):
    args = inputs(shape, dtype, over_heads)
    check(runner(ops.qk_norm_rope, *args), plain, args)
    check(runner(ops.qk_norm_rope, *args[:2], eps=0.5), plain, args[:2], eps=0.5)


@pytest.mark.parametrize("over_heads", [True, False], ids=["all heads", "each head"])
@pytest.mark.parametrize("K", [1, 63])
def test_odd_heads_without_positions(runner, K, over_heads):
    args = inputs((2, 5, 3, K), torch.bfloat16, over_heads)[:2]
    check(runner(ops.qk_norm_rope, *args), plain, args)


def test_gain_in_bf16(runner):
    x, gain, cos, sin = inputs(SHAPES["odd"], torch.float32, True)
    expected = runner(ops.qk_norm_rope, x, gain.bfloat16().float(), cos, sin)
    assert torch.equal(runner(ops.qk_norm_rope, x, gain.bfloat16(), cos, sin), expected)


VIEWS = {
    "fused projection": lambda x: torch.stack([torch.full_like(x, torch.nan), x], 2)[:, :, 1],
    "fused heads": lambda x: torch.cat([torch.full_like(x, torch.nan), x], 3)[..., x.shape[3] :],
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "one sample repeated": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("over_heads", [True, False], ids=["all heads", "each head"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strides(runner, view, over_heads):
    x, gain, cos, sin = inputs((2, 7, 3, 36), torch.bfloat16, over_heads)
    tables = [torch.cat([t, torch.full_like(t, torch.nan)], 1)[:, :18] for t in (cos, sin)]
    expected = runner(ops.qk_norm_rope, view(x).contiguous(), gain, cos, sin)
    assert torch.equal(runner(ops.qk_norm_rope, view(x), gain, *tables), expected)


@pytest.mark.parametrize("layout", [strided, transposed])
def test_scattered_values_go_to_the_reference(layout):
    x, gain, cos, sin = inputs(SHAPES["usual"], torch.float32, True)
    rest = gain, cos, sin
    assert "x has a stride of" in ops.explain("qk_norm_rope", layout(x), *rest).reasons["cpu"]
    torch.testing.assert_close(ops.qk_norm_rope(layout(x), *rest), ops.qk_norm_rope(x, *rest))
    assert "cos has a stride of" in ops.explain("qk_norm_rope", x, gain, layout(cos), sin).reasons["cpu"]
    wide = ops.explain("qk_norm_rope", x, gain, cos.double(), sin.double())
    assert wide.reasons["cpu"] == "cos is torch.float64"


def test_rejects_one_table(runner):
    x, gain, cos, _ = inputs(SHAPES["usual"], torch.float32, True)
    with pytest.raises(ValueError, match="both or neither"):
        runner(ops.qk_norm_rope, x, gain, cos)
