"""`qk_norm_rope` against complex multiplication."""

from __future__ import annotations

import pytest
import torch
from close import check, strided, transposed
from torch import Tensor

from pysora import ops

OP = "qk_norm_rope"
SHAPES = {"usual": (2, 7, 3, 16), "odd": (1, 5, 3, 6), "one": (1, 1, 1, 2)}


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


@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides(runner, layout):
    x, *rest = inputs(SHAPES["usual"], torch.float32, True)
    torch.testing.assert_close(runner(ops.qk_norm_rope, layout(x), *rest), runner(ops.qk_norm_rope, x, *rest))


def test_rejects_one_table(runner):
    x, gain, cos, _ = inputs(SHAPES["usual"], torch.float32, True)
    with pytest.raises(ValueError, match="both or neither"):
        runner(ops.qk_norm_rope, x, gain, cos)
