"""Gradients of the native kernels that have their own, against those of the references in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_close, error, to
from torch import Tensor

from pysora import ops
from pysora.ops import _cpu

OP = "adaln"  # whose runners, one for each instruction set, stand for those of all
FP32, BF16 = torch.float32, torch.bfloat16


def rotation(L: int, K: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(L, K // 2) * 6
    return angles.cos(), angles.sin()


def case(name: str, dtype: torch.dtype) -> tuple[Any, tuple[Any, ...]]:
    """The op of a case, and its arguments."""
    kind, _, form = name.partition(", ")
    B, L, D = {"odd": (2, 7, 37), "several tasks": (2, 90, 200)}.get(form, (3, 5, 32))
    x, y = ((torch.randn(B, L, D) * 2 + 0.5).to(dtype) for _ in range(2))
    rows = torch.randint(4, (B, L), dtype=torch.int32)
    gain, bias = torch.randn(D), torch.randn(D)
    if kind == "adaln":
        index = rows if form in ("index", "odd") else None
        table = torch.randn(4 if index is not None else 1 if form == "one row" else B, 2, D)
        if form == "gain and bias":
            return ops.adaln, (x, None, None, gain, bias)
        if form == "rms":
            return ops.adaln, (x, table, None, gain, bias, 1e-6, "rms")
        return ops.adaln, (x, table, index, *((gain, bias) if form == "odd" else ()))
    if kind == "gate_residual":
        index = rows if form in ("index", "odd") else None
        wide = x.float() if form == "bf16 branch" else x
        return ops.gate_residual, (wide, y, torch.randn(B if index is None else 4, D), index)
    if kind == "qk_norm_rope":
        B, L, N, K = {"odd": (2, 7, 3, 18), "several tasks": (2, 80, 4, 64)}.get(form, (2, 5, 2, 32))
        q = torch.randn(B, L, N, K).to(dtype)
        if form == "apart":  # as a part of a wider projection
            q = torch.randn(B, L, N, 3 * K).to(dtype)[..., K : 2 * K]
        gain = torch.randn(K if form == "each head" else N * K)
        return ops.qk_norm_rope, (q, gain, *(() if form == "no positions" else rotation(L, K)))
    weight, bias = torch.randn(40, D).to(dtype) / 5, torch.randn(40).to(dtype)
    return ops.linear, (x, weight, bias, "gelu")


CASES = [
    *(f"adaln, {f}" for f in ("usual", "one row", "index", "gain and bias", "rms", "odd", "several tasks")),
    *(f"gate_residual, {f}" for f in ("usual", "index", "bf16 branch", "odd", "several tasks")),
    *(f"qk_norm_rope, {f}" for f in ("usual", "each head", "no positions", "apart", "odd", "several tasks")),
    *(f"linear, {f}" for f in ("usual", "odd", "several tasks")),
]


def gradients(op: Any, args: tuple[Any, ...], backend: str | None) -> list[Tensor]:
    """Of a sum of the results that is different for each, after the results themselves."""
    leaves = [t.detach().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args]
    if op is ops.qk_norm_rope:
        leaves[2:4] = args[2:4]  # positions have none
    out = op(*leaves, backend=backend)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape)
    out.backward(weights.to(out.dtype))
    found = [t.grad for t in leaves if isinstance(t, Tensor) and t.grad is not None]
    assert len(found) == sum(isinstance(t, Tensor) and t.requires_grad for t in leaves)
    return [out.detach(), *found]


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_gradients(runner, name, dtype):
    op, args = case(name, dtype)
    backend = runner.backend
    native = gradients(op, args, backend)
    exact = gradients(op, to(torch.float64, args), "reference")
    result, *found = zip(native, gradients(op, args, "reference"), exact, strict=True)
    assert_close(*result)
    for mine, plain, wanted in found:
        assert mine.dtype == plain.dtype and mine.shape == plain.shape
        # Sums over tokens are one chain for each thread, where torch adds up pairs; GELU's exponential has an argument
        # of up to 40 whose last digit is rounded.
        last_places = (8 if op is ops.linear else 4) * torch.finfo(mine.dtype).eps * float(wanted.abs().max())
        assert error(mine, wanted) <= max(2 * error(plain, wanted), last_places)


def test_gelu_at_both_ends(runner):
    x = torch.tensor([-1e4, -30.0, -3.0, -1e-30, 0.0, 1e-30, 3.0, 30.0, 1e4])
    one = torch.ones(1, 1)
    found = gradients(ops.linear, (x[:, None], one, None, "gelu"), runner.backend)
    exact = gradients(ops.linear, to(torch.float64, (x[:, None], one, None, "gelu")), "reference")
    for mine, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-6, atol=1e-6)


def test_under_autocast_a_branch_is_recorded_natively():
    """As the transformer trains: fp32 weights, bf16 branches."""
    x, weight, gate = (torch.randn(s, requires_grad=True) for s in ((1, 4, 8), (8, 8), (1, 8)))
    with torch.autocast("cpu", BF16):
        assert ops.explain("linear", x.bfloat16(), weight, None, "gelu").backend == "cpu"
        hidden = ops.linear(x, weight, None, "gelu")
        assert hidden.dtype == BF16
        assert ops.explain("gate_residual", x, hidden, gate).backend == "cpu"
        ops.gate_residual(x, hidden, gate).sum().backward()
    assert all(t.grad is not None and t.grad.dtype == FP32 for t in (x, weight, gate))


def test_gradients_have_none_of_their_own():
    x, gate = torch.randn(1, 2, 8, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="have no gradients: name backend='reference'"):
        torch.autograd.grad(ops.gate_residual(x, x * 2, gate, backend="cpu").sum(), x, create_graph=True)
    (of_x,) = torch.autograd.grad(ops.gate_residual(x, x * 2, gate, backend="reference").sum(), x, create_graph=True)
    of_x.sum().backward()
    assert torch.equal(gate.grad, torch.full((1, 8), 4.0))


def test_the_extension_checks_what_gradients_are_given():
    native, x = _cpu.native(), torch.randn(1, 2, 8)
    gate, out = torch.randn(1, 8), torch.empty(1, 2, 8)
    with pytest.raises(ValueError, match="sums"):
        native.gate_residual_backward(x, x, gate, None, out, torch.zeros(1, 2, 8), 1)
    with pytest.raises(ValueError, match="sums"):
        native.adaln_backward(x, x, None, None, None, None, 1e-6, True, out, torch.zeros(1, 23), 1)
    with pytest.raises(ValueError, match="grad"):
        native.qk_norm_rope_backward(
            x, x[:, :, None], torch.ones(8), None, None, 1e-6, out[:, :, None], torch.zeros(1, 2, 8), 1
        )
    with pytest.raises(ValueError, match="grad"):
        native.gelu(x, x[:, :1].contiguous(), out, 1)


def test_gradients_by_torch_func_are_the_references():
    x, gate = torch.randn(1, 2, 8), torch.randn(1, 8)
    found = torch.func.grad(lambda y: ops.gate_residual(x, y, gate).sum())(x)
    torch.testing.assert_close(found, gate.expand(1, 2, 8))
