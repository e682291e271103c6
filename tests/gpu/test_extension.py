"""The registry's CUDA backend through the built extension: host code as it is, kernels executed on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_close, to
from gpu.fake_gpu import STREAM
from gpu.launches import on
from torch import Tensor

from pysora import ops
from pysora.ops import _cpu

BF16 = torch.bfloat16
OFFSETS = torch.tensor([0, 2, 5], dtype=torch.int32)
INDEX = torch.tensor([2, 0, 1, 1, 0], dtype=torch.int32)


def R(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=BF16)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last_3d)


def calls() -> dict[str, list[tuple[Any, ...]]]:
    """For each op with a CUDA kernel the arguments of one or two calls: what is optional is given in one of them."""
    torch.manual_seed(1)
    wide = torch.randn(5, 32)
    return {
        "adaln": [
            (R(2, 5, 32), torch.randn(2, 2, 32)),
            (R(2, 5, 32), torch.randn(3, 2, 32), INDEX, torch.randn(32), torch.randn(32), 1e-5, "rms"),
        ],
        "causal_conv3d": [
            (channels_last(R(1, 16, 2, 4, 5)), R(16, 16, 3, 3, 3)),
            (
                *(channels_last(R(1, 16, 2, 4, 5)), R(16, 16, 3, 3, 3), R(16), channels_last(R(1, 16, 2, 4, 5))),
                *(torch.randn(16), channels_last(R(1, 16, 2, 8, 10)), True),
            ),
        ],
        "gate_residual": [(R(2, 5, 32), R(2, 5, 32), torch.randn(3, 32), INDEX), (R(2, 5, 7), R(2, 5, 7), R(2, 7))],
        "noise": [((5, 2, 3, 8), 5, 1, (1, 0, 2), "cuda:0")],
        "norm_silu": [(R(1, 16, 2, 4, 5), torch.randn(16)), (channels_last(R(1, 16, 2, 4, 5)), R(16), False)],
        "patch_embed": [(R(2, 4, 2, 4, 6), R(72, 4, 1, 2, 2), R(72))],
        "qk_norm_rope": [(R(2, 5, 2, 64), R(128), wide, wide), (R(2, 5, 3, 64), R(64))],
        "sampler_step": [
            (torch.randn(9, 9), R(9, 9), R(9, 9), [torch.randn(9, 9)], torch.randn(2, 3), 3.0),
            (torch.randn(9, 9), R(9, 9), None, [], torch.randn(1, 3), 1.0, torch.randn(9, 9)),
        ],
        "spacetime_attention": [
            (R(2, 5, 2, 64), R(2, 70, 2, 64), R(2, 70, 2, 64)),
            (R(1, 5, 1, 128), R(1, 5, 1, 128), R(1, 5, 1, 128), 0.1, torch.randn(1, 5), OFFSETS, OFFSETS, True),
        ],
        "unpatchify": [(R(2, 8, 12), [2, 2, 2], [1, 2, 2])],
    }


CALLS = calls()
EVERY_CALL = pytest.mark.parametrize(
    ("name", "args"), [pytest.param(n, a, id=f"{n}-{i}") for n, made in CALLS.items() for i, a in enumerate(made)]
)


def as_list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def test_every_op_with_a_kernel_is_called_here():
    assert set(CALLS) == {name for name, op in ops.OPS.items() if any(i.backend == "cuda" for i in op.impls)}


@EVERY_CALL
def test_result(gpu, name, args):
    """The kernel's result, made without allocating, copying or waiting, on torch's current stream."""
    op, there = ops.OPS[name], on(gpu, name, args)
    with gpu:
        answer = op.explain(op.bind(there, {}))
        result = as_list(op(*there))
        assert all(str(t.device) == "cuda:0" for t in result)
    assert answer.backend == "cuda", answer
    assert gpu.launches and {(launch.stream, launch.device) for launch in gpu.launches} == {(STREAM, 0)}
    assert gpu.count() == 0
    if name == "noise":
        assert torch.equal(result[0], ops.noise(*args[:4]))
        return
    near, exact = as_list(op.reference(*there)), as_list(op.reference(*to(torch.float64, there)))
    for actual, plain, true in zip(result, near, exact, strict=True):
        assert actual.is_contiguous() == plain.is_contiguous()
        assert_close(actual, plain, true)


@EVERY_CALL
def test_refusals(gpu, monkeypatch, name, args):
    """Another device, another dtype, an old card, no kernels, no card: each has its reason, and nothing is launched."""
    op, there = ops.OPS[name], on(gpu, name, args)

    def reason(*values: Any) -> str:
        return op.explain(op.bind(values, {})).reasons["cuda"]

    with gpu:
        if name == "noise":
            assert reason(*args[:4]) == "the result is on cpu"
        else:
            first = op.names[0]
            assert reason(*args) == f"{first} is on cpu"
            assert reason(there[0].double(), *there[1:]) == f"{first} is torch.float64"
        if len(args) > 1 and isinstance(args[1], Tensor):
            assert f"{op.names[1]} is on cpu" in reason(there[0], args[1], *there[2:])
        with pytest.raises(NotImplementedError, match=f"{name}: cuda: "):
            op(*(args[:4] if name == "noise" else args), backend="cuda")
        _refusals_of_the_machine(gpu, monkeypatch, lambda: reason(*there))
    assert not gpu.launches


def _refusals_of_the_machine(gpu: Any, monkeypatch: pytest.MonkeyPatch, reason: Any) -> None:
    from gpu.conftest import CACHES

    def after(target: Any, attribute: str, value: Any) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute, value)
            for cache in CACHES:
                cache.cache_clear()
            answer = reason()
        for cache in CACHES:
            cache.cache_clear()
        return answer

    old = after(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert old == "cuda:0 has compute capability 7.5, below 8.0"
    assert after(torch.cuda, "device_count", lambda: 0) == "there is no CUDA device"
    unbuilt = after(_cpu, "_extension", lambda: (None, "the compiled extension is not built"))
    assert unbuilt == "the compiled extension is not built"

    without = after(gpu.native, "build_info", lambda: {"cuda_targets": ""})
    assert without == "the extension was built without a CUDA compiler"


def test_a_gradient_goes_to_the_reference(gpu):
    x, y, gate = on(gpu, "gate_residual", CALLS["gate_residual"][1])[:3]
    with gpu:
        assert ops.explain("gate_residual", x, y, gate.requires_grad_()).reasons["cuda"] == "needs a gradient"


def test_tensors_that_kernels_cannot_read(gpu):
    """Scattered rows, rows that do not start at multiples of 16 bytes, heads and patches of other sizes."""
    q = gpu.put(R(1, 4, 2, 64))
    shifted = gpu.put(R(1, 4, 2, 66))[..., 1:65]
    with gpu:
        for name, args, why in (
            ("gate_residual", (q[0], q[0].mT.contiguous().mT, q[0, :1, 0]), "y has a stride of"),
            ("spacetime_attention", (shifted, q, q), "q does not start at a multiple of 16 bytes"),
            ("spacetime_attention", (q, q, gpu.put(R(1, 4, 2, 68))[..., :64]), "v has a stride of 68 in dimension 2"),
            ("spacetime_attention", (q[..., :32], q[..., :32], q[..., :32]), "heads are 32 wide, not 64 or 128"),
            ("patch_embed", (gpu.put(R(1, 513, 1, 1, 1)), gpu.put(R(8, 513, 1, 1, 1))), "a patch has 513 values"),
            ("adaln", (gpu.put(R(1, 1, 16400)),), "x is 16400 wide, more than 16384"),
        ):
            assert why in ops.explain(name, *args).reasons["cuda"]


@pytest.mark.parametrize("name", [n for n in CALLS if n not in ("noise", "sampler_step")])
def test_nothing_to_do_launches_nothing(gpu, name):
    if name == "causal_conv3d":
        x, weight = channels_last(R(0, 16, 2, 4, 5)), R(16, 16, 3, 3, 3)
        args: tuple[Any, ...] = (x, weight)
    else:
        args = tuple(
            a[:0] if isinstance(a, Tensor) and a.ndim > 2 and i == 0 else a for i, a in enumerate(CALLS[name][0])
        )
        if name == "gate_residual":
            args = (R(0, 5, 32), R(0, 5, 32), torch.randn(1, 32))
        if name == "adaln":
            args = (R(0, 5, 32),)
        if name == "spacetime_attention":
            args = (R(0, 5, 2, 64),) * 3
    with gpu:
        result = as_list(ops.OPS[name](*on(gpu, name, args), backend="cuda"))
    assert result[0].numel() == 0 and not gpu.launches


def test_sizes_beyond_the_limits_of_a_grid(gpu):
    """More rows, heads and samples than a grid's second and third dimension take: the fake runtime checks them."""
    gpu.execute = False
    long = gpu.empty(torch.empty(1, 70000, 8, dtype=BF16))
    heads = gpu.empty(torch.empty(1, 1, 70000, 64, dtype=BF16))
    samples = gpu.empty(torch.empty(70000, 1, 1, 64, dtype=BF16))
    pictures = gpu.empty(torch.empty(70000, 16, 1, 1, 1, dtype=BF16))
    row, gain, gamma, one = (gpu.put(R(*shape)) for shape in ((1, 8), (64,), (16,), (16, 16, 1, 1, 1)))
    with gpu:
        for name, args in (
            ("adaln", (long,)),
            ("gate_residual", (long, long, row)),
            ("noise", ((1, 70000, 1, 1), 0, 0, (0, 0, 0), "cuda:0")),
            ("norm_silu", (pictures, gamma)),
            ("patch_embed", (pictures, one)),
            ("qk_norm_rope", (heads, gain)),
            ("spacetime_attention", (heads, heads, heads)),
            ("spacetime_attention", (samples, samples, samples)),
            ("unpatchify", (long, [1, 70000, 1], [1, 2, 2])),
            ("causal_conv3d", (channels_last(pictures), one)),
        ):
            ops.OPS[name](*args, backend="cuda")
    assert {launch.block[1:] for launch in gpu.launches} and gpu.error is None


def raw(gpu: Any, tensor: Tensor, device: str = "cuda:0") -> Any:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return gpu.native.Raw(tensor.data_ptr(), dtype, list(tensor.shape), list(tensor.stride()), device)


def test_a_launch_that_fails_is_an_error_once(gpu):
    """It names the op, the device and CUDA's error, and the next call does not see it."""
    x = gpu.put(R(1, 4, 8))
    with gpu:
        gpu.runtime.fake_fail_next_launch(1)
        with pytest.raises(RuntimeError, match=r"gate_residual on cuda:0: .* \(cudaErrorInvalidValue\)"):
            ops.gate_residual(x, x, x[:, 0], backend="cuda")
        ops.gate_residual(x, x, x[:, 0], backend="cuda")


def test_a_kernel_that_leaves_its_tensors_is_an_error(gpu):
    """A view that claims more memory than there is: the runner stops at the first access outside."""
    x, out = gpu.put(R(1, 4, 8)), gpu.put(R(1, 8, 8))
    longer = gpu.native.Raw(x.data_ptr(), "bfloat16", [1, 8, 8], [64, 8, 1], "cuda:0")
    with pytest.raises(RuntimeError, match=r"gate_residual on cuda:0: .*cudaErrorLaunchFailure"):
        gpu.native.gate_residual(longer, longer, raw(gpu, x[:, 0]), None, raw(gpu, out), 1, 0)
    assert "gate_residual_kernel" in str(gpu.error)
    gpu.error = None


def test_the_tensors_device_is_made_current_and_the_one_before_again(gpu):
    x, out = gpu.put(R(1, 4, 8)), gpu.put(R(1, 4, 8))
    there = [raw(gpu, t, "cuda:1") for t in (x, x, x[:, 0])]
    gpu.native.gate_residual(*there, None, raw(gpu, out, "cuda:1"), 1, 7)
    gpu.native.gate_residual(*(raw(gpu, t) for t in (x, x, x[:, 0])), None, raw(gpu, out), 1, 7)
    assert [(launch.device, launch.stream) for launch in gpu.launches] == [(1, 7), (0, 7)]


def test_the_extension_refuses_tensors_on_several_devices(gpu):
    x = gpu.put(R(1, 4, 8))
    for other in ("cpu", "cuda:1"):
        elsewhere = raw(gpu, x, other)
        with pytest.raises(ValueError, match="y: need a tensor on cuda:0 as the others, got "):
            gpu.native.gate_residual(raw(gpu, x), elsewhere, elsewhere, None, elsewhere, 1, 0)
    with pytest.raises(ValueError, match="device: need cpu or cuda:N, got meta"):
        raw(gpu, x, "meta")


def test_ops_without_a_kernel_say_so(gpu):
    x = gpu.put(torch.randn(16))
    with pytest.raises(ValueError, match="ceiling_triad: this extension has no kernel for cuda:0"):
        gpu.native.ceiling_triad(*(raw(gpu, x),) * 3, 1)
    y = torch.zeros(1, 16, 1, 1, 1)
    with pytest.raises(ValueError, match="causal_conv3d: this extension has no kernel for the CPU"):
        gpu.native.causal_conv3d(
            *(raw(gpu, t, "cpu") for t in (y, torch.zeros(16, 16, 1, 1, 1))),
            *(None,) * 4,
            False,
            raw(gpu, y, "cpu"),
            raw(gpu, y[:, :, :0], "cpu"),
            None,
            1,
        )


def test_an_index_that_names_no_row_makes_nan(gpu):
    """The host cannot look at it without waiting: such a token becomes NaN, the others are right."""
    x, y, gate, table = R(1, 4, 32), R(1, 4, 32), torch.randn(3, 32), torch.randn(3, 2, 32)
    index = torch.tensor([2, 3, -1, 0], dtype=torch.int32)
    there = [gpu.put(t) for t in (x, y, gate, table, index)]
    with gpu:
        sums = ops.gate_residual(*there[:3], there[4], backend="cuda")
        normed = ops.adaln(there[0], there[3], there[4], backend="cuda")
    for result in (sums, normed):
        assert result[0, 1:3].isnan().all() and not result[0, 0::3].isnan().any()


def test_info_tells_what_runs(gpu):
    from pysora import info

    with gpu:
        facts = info.gather()
    assert facts["ops"]["gate_residual"]["backend"] == "cuda"
    assert facts["ops"]["linear"]["not"]["cuda"] == "no kernel for this op"
    assert facts["devices"][1:] == ["cuda:0 fake GPU, compute capability 8.6"]
    assert "cuda_targets 80-virtual" in info.text(facts)
