"""The rules of the registry, and what every op owes to torch: schema, fake, torch.compile, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._pytree import tree_flatten, tree_map

from pysora import ops
from pysora.ops import _registry

R = torch.randn
OFFSETS = torch.tensor([0, 2, 5], dtype=torch.int32)
# For each op the arguments of one or two calls: what is optional is given in one of them.
CALLS: dict[str, list[tuple[Any, ...]]] = {
    "adaln": [
        (R(2, 5, 4), R(2, 2, 4)),
        (R(2, 5, 4), R(3, 2, 4), torch.tensor([0, 1, 2, 1, 0], dtype=torch.int32), R(4), R(4), 1e-5, "rms"),
    ],
    "causal_conv3d": [
        (R(1, 3, 2, 4, 5), R(4, 3, 3, 3, 3)),
        (R(1, 3, 2, 4, 5), R(4, 3, 3, 3, 3), R(4), R(1, 3, 2, 4, 5), R(3), R(1, 4, 2, 8, 10), True),
        (R(1, 3, 2, 4, 5).contiguous(memory_format=torch.channels_last_3d), R(4, 3, 3, 3, 3), R(4)),
    ],
    "gate_residual": [(R(2, 5, 4), R(2, 5, 4), R(1, 4))],
    "linear": [(R(2, 5, 4), R(6, 4), R(6), "gelu"), (R(2, 5, 4), R(6, 4), R(6), "gate_residual", R(2, 5, 6), R(1, 6))],
    "linear_int8": [
        (R(2, 5, 4), torch.ones(6, 4, dtype=torch.int8), torch.rand(6), R(6), "gelu"),
        (R(2, 5, 4), torch.ones(6, 4, dtype=torch.int8), torch.rand(6), None, "gate_residual", R(2, 5, 6), R(1, 6)),
    ],
    "noise": [((3, 2, 2, 2), 5, 1, (1, 0, 2))],
    "norm_silu": [(R(1, 3, 2, 4, 5), R(3)), (R(1, 3, 4, 5).contiguous(memory_format=torch.channels_last), R(3), False)],
    "patch_embed": [(R(2, 3, 2, 4, 6), R(8, 3, 1, 2, 2), R(8))],
    "qk_norm_rope": [(R(2, 5, 3, 4), R(12), R(5, 2), R(5, 2)), (R(2, 5, 3, 4), R(4))],
    "sampler_step": [
        (R(3, 4), R(3, 4), R(3, 4), [R(3, 4)], R(2, 3), 3.0),
        (R(3, 4), R(3, 4), None, [], R(1, 3), 1.0, R(3, 4)),
    ],
    "spacetime_attention": [
        (R(2, 5, 3, 4), R(2, 7, 3, 4), R(2, 7, 3, 4)),
        (R(1, 5, 3, 4), R(1, 5, 3, 4), R(1, 5, 3, 4), 0.5, R(1, 5), OFFSETS, OFFSETS, True),
        (R(1, 5, 3, 4), R(1, 5, 3, 4), R(1, 5, 3, 4), 0.5, R(1, 5), OFFSETS, OFFSETS, True, True),
    ],
    "unpatchify": [(R(2, 8, 12), [2, 2, 2], [1, 2, 2])],
}
EVERY_CALL = pytest.mark.parametrize(
    ("name", "args"), [pytest.param(n, a, id=f"{n}-{i}") for n, calls in CALLS.items() for i, a in enumerate(calls)]
)


def with_gradients(args: Any, dtype: torch.dtype | None = None) -> Any:
    """Return copies of the arguments whose floating-point tensors require gradients."""

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().clone().to(dtype or value.dtype).requires_grad_()
        return value

    return tree_map(copy, args)


def test_every_op_is_called_here():
    assert set(CALLS) == set(ops.OPS)


@EVERY_CALL
def test_opcheck(name, args):
    opcheck(ops.OPS[name].torch_op, args)
    if name != "noise":
        opcheck(ops.OPS[name].torch_op, with_gradients(args))


@EVERY_CALL
def test_torch_compile_keeps_the_op_whole(name, args):
    op = ops.OPS[name]
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(module)
        return module

    torch.compiler.reset()
    compiled = torch.compile(lambda *a: op(*a), backend=backend, fullgraph=True)(*args)
    torch.testing.assert_close(compiled, op(*args), equal_nan=True)
    assert [n.target for n in graphs[0].graph.nodes if "pysora" in str(n.target)] == [op.torch_op]


@pytest.mark.parametrize("name", [n for n in CALLS if n != "noise"])
def test_gradients_survive_torch_compile(name):
    op, args = ops.OPS[name], CALLS[name][-1]

    def gradients(function: Any) -> list[Tensor]:
        inputs = with_gradients(args)
        outputs = [t for t in tree_flatten(function(*inputs))[0] if t.requires_grad]
        leaves = [t for t in tree_flatten(inputs)[0] if isinstance(t, Tensor) and t.requires_grad]
        return list(torch.autograd.grad(sum((t * t).sum() for t in outputs), leaves))

    torch.compiler.reset()
    compiled = torch.compile(lambda *a: op(*a), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled), gradients(op), equal_nan=True)


@pytest.mark.parametrize("name", [n for n in CALLS if n != "noise"])
def test_gradients_are_right(name):
    op = ops.OPS[name]
    args = with_gradients(CALLS[name][-1], torch.float64)
    flat, spec = tree_flatten(args)
    places = [i for i, value in enumerate(flat) if isinstance(value, Tensor) and value.requires_grad]

    def function(*leaves: Tensor) -> Any:
        values = list(flat)
        for place, leaf in zip(places, leaves, strict=True):
            values[place] = leaf
        return tuple(
            t for t in tree_flatten(op(*torch.utils._pytree.tree_unflatten(values, spec)))[0] if t.requires_grad
        )

    assert torch.autograd.gradcheck(function, [flat[i] for i in places], fast_mode=True)


def test_native_backends_answer_that_a_gradient_is_needed():
    video, weight = R(1, 2, 1, 2, 2), R(3, 2, 1, 2, 2, requires_grad=True)
    with pytest.raises(NotImplementedError, match="patch_embed: cpu: needs a gradient"):
        ops.patch_embed(video, weight, backend="cpu")
    assert ops.patch_embed(video, weight).requires_grad
    assert ops.explain("patch_embed", video, weight).backend == "reference"
    with torch.no_grad():
        assert ops.explain("patch_embed", video, weight).backend == "cpu"


RECORDED = ("adaln", "gate_residual", "linear", "qk_norm_rope")


@pytest.mark.parametrize("name", [n for n in CALLS if n != "noise"])
def test_gradients_go_to_kernels_of_their_own_or_to_the_reference(name):
    answer = ops.explain(name, *with_gradients(CALLS[name][-1]))
    assert answer.backend == ("cpu" if name in RECORDED else "reference")
    if name not in RECORDED:
        assert answer.reasons["cpu"] in ("needs a gradient", "no kernel for this op")


@pytest.fixture
def without_kernels(monkeypatch):
    """An op that has its reference alone."""
    monkeypatch.setattr(ops.unpatchify, "impls", [])
    return ops.unpatchify


def test_a_named_backend_never_falls_back(without_kernels):
    x = R(2, 8, 12)
    with pytest.raises(NotImplementedError, match="unpatchify: cpu: no such kernel"):
        without_kernels(x, [2, 2, 2], [1, 2, 2], backend="cpu")
    with pytest.raises(ValueError, match="backend: need one of cuda, triton, cpu, reference, got 'gpu'"):
        without_kernels(x, [2, 2, 2], [1, 2, 2], backend="gpu")
    double = R(1, 2, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"video is torch\.float64"):
        ops.patch_embed(double, R(3, 2, 1, 2, 2, dtype=torch.float64), backend="cpu")


def test_a_named_backend_holds_under_torch_compile(without_kernels):
    call = torch.compile(lambda x: without_kernels(x, [2, 2, 2], [1, 2, 2], backend="cpu"), backend="eager")
    with pytest.raises(Exception, match="no such kernel"):
        call(R(2, 8, 12))


def test_the_environment_chooses_where_it_can(monkeypatch, without_kernels):
    video, weight = R(1, 2, 1, 2, 2), R(3, 2, 1, 2, 2)
    monkeypatch.setattr(_registry, "FORCED", "reference")
    answer = ops.explain("patch_embed", video, weight)
    assert answer.backend == "reference" and answer.reasons["cpu"] == "PYSORA_BACKEND is reference"
    monkeypatch.setattr(_registry, "FORCED", "cpu")
    assert ops.explain("patch_embed", video, weight).backend == "cpu"
    assert ops.explain(without_kernels.name).backend == "reference"
    monkeypatch.setattr(_registry, "FORCED", "gpu")
    with pytest.raises(ValueError, match="PYSORA_BACKEND: need one of"):
        ops.patch_embed(video, weight)


def test_explain_gives_a_reason_for_every_backend():
    for name in ops.OPS:
        answer = ops.explain(name)
        assert {answer.backend, *answer.reasons} == set(ops.BACKENDS)
        assert all(answer.reasons.values()) and str(answer).startswith(f"{name}: {answer.backend}\n")
    with pytest.raises(ValueError, match=r"name: need one of .*, got 'sort'"):
        ops.explain("sort")


def test_tensors_that_native_code_cannot_borrow_go_to_the_reference():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        video, weight = torch.empty(1, 2, 1, 2, 2), torch.empty(3, 2, 1, 2, 2)
        assert ops.explain("patch_embed", video, weight).reasons["cpu"] == "weight is a FakeTensor, not a plain tensor"
        assert ops.patch_embed(video, weight).shape == (1, 1, 3)
    meta = torch.empty(1, 2, 1, 2, 2, device="meta")
    assert ops.patch_embed(meta, torch.empty(3, 2, 1, 2, 2, device="meta")).shape == (1, 1, 3)


def test_arguments_bind_as_in_a_plain_call():
    x = R(2, 8, 12)
    by_name = ops.unpatchify(x, patch=[1, 2, 2], grid=[2, 2, 2])
    assert torch.equal(by_name, ops.unpatchify(x, [2, 2, 2], [1, 2, 2]))
    for args, kwargs, problem in (
        ((x, [2, 2, 2]), {}, "needs argument 'patch'"),
        ((x, [2, 2, 2]), {"grid": [1]}, "got two values for argument 'grid'"),
        ((x, [2, 2, 2]), {"size": 1}, "has no argument 'size'"),
        ((x, 1, 2, 3), {}, "takes 3 arguments, got 4"),
    ):
        with pytest.raises(TypeError, match=problem):
            ops.unpatchify(*args, **kwargs)
