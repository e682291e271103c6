"""One step of any linear sampler: guidance and all linear combinations in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import at_least_fp32, need, need_shape
from pysora.ops._registry import op


def _check(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
) -> None:
    shape = tuple(sample.shape)
    others = [("prediction", prediction), ("prediction_uncond", prediction_uncond), ("noise", noise)]
    for name, tensor in [*others, *((f"history[{i}]", h) for i, h in enumerate(history))]:
        if tensor is not None:
            need_shape(tensor, name, "the shape of sample", shape)
    if prediction_uncond is not None:
        need(
            prediction_uncond.dtype == prediction.dtype,
            "prediction_uncond",
            str(prediction.dtype),
            prediction_uncond.dtype,
        )
    need(coefficients.is_floating_point(), "coefficients", "float64 or float32", coefficients.dtype)
    inputs = 2 + len(history) + (noise is not None)
    need(
        coefficients.ndim == 2 and coefficients.shape[0] >= 1 and coefficients.shape[1] == inputs,
        "coefficients",
        f"[R, {inputs}] for the sample, the prediction, {len(history)} of history and {int(noise is not None)} noise",
        list(coefficients.shape),
    )


def _fake(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    guidance: float,
    noise: Tensor | None,
) -> list[Tensor]:
    _check(sample, prediction, prediction_uncond, history, coefficients, noise)
    dtype = at_least_fp32(sample.dtype)
    return [sample.new_empty(sample.shape, dtype=dtype) for _ in range(coefficients.shape[0])]


@op(
    "(Tensor sample, Tensor prediction, Tensor? prediction_uncond, Tensor[] history, Tensor coefficients, "
    "float guidance=1.0, Tensor? noise=None) -> Tensor[]",
    _fake,
)
def sampler_step(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    guidance: float = 1.0,
    noise: Tensor | None = None,
) -> list[Tensor]:
    """Combine the inputs of a sampler step: `out[r] = sum_j coefficients[r, j] * input[j]`.

    The inputs are (sample, guided, *history, noise where given), with
    `guided = uncond + guidance*(prediction - uncond)`, or the prediction itself without an unconditional one. Products
    and sums are taken one by one in the order of the inputs, so that every backend gives the same bits.

    Args:
        sample: any shape, fp32 (fp64 gives fp64 results).
        prediction: shape of sample, fp32 or bf16; guidance is computed in this dtype.
        prediction_uncond: like prediction, or None.
        history: h tensors of the shape of sample, fp32: earlier predictions or samples, as the sampler defines.
        coefficients: `[R, 2+h]`, or `[R, 3+h]` with noise; float64 or float32, rounded to the results' dtype.
        guidance: weight of the conditional prediction.
        noise: shape of sample, fp32, or None.

    Returns:
        R tensors of the shape of sample, fp32.

    Raises:
        ValueError: a shape or dtype does not fit.

    Source: Ho and Salimans 2022, equation 6 (guidance); each sampler's coefficients name their own.
    """
    _check(sample, prediction, prediction_uncond, history, coefficients, noise)
    dtype = at_least_fp32(sample.dtype)
    guided = prediction
    if prediction_uncond is not None:
        guided = prediction_uncond + guidance * (prediction - prediction_uncond)
    inputs = [t.to(dtype) for t in (sample, guided, *history, *([] if noise is None else [noise]))]
    results = []
    for row in coefficients.to(dtype).unbind():
        total = row[0] * inputs[0]
        for factor, tensor in zip(row[1:].unbind(), inputs[1:], strict=True):
            total = total + factor * tensor
        results.append(total)
    return results


def _cpu(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    guidance: float,
    noise: Tensor | None,
) -> list[Tensor]:
    outs = _fake(sample, prediction, prediction_uncond, history, coefficients, guidance, noise)
    _native.native().sampler_step(
        *map(_native.borrow, (sample, prediction, prediction_uncond)),
        [_native.borrow(t) for t in (*history, *([] if noise is None else [noise]))],
        coefficients.tolist(),
        guidance,
        [_native.borrow(t) for t in outs],
        _native.threads(),
    )
    return outs


def _cpu_refuses(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    guidance: float,
    noise: Tensor | None,
) -> str | None:
    wide = {"sample": sample, "noise": noise, **{f"history[{i}]": h for i, h in enumerate(history)}}
    narrow = {"prediction": prediction, "prediction_uncond": prediction_uncond}
    for name, tensor in {**wide, **narrow}.items():
        if tensor is not None and not tensor.is_contiguous():
            return f"{name} is not contiguous"
    limits = _native.native()
    if coefficients.shape[0] > limits.SAMPLER_MAX_OUTS or coefficients.shape[1] > limits.SAMPLER_MAX_INPUTS:
        return f"coefficients are larger than {limits.SAMPLER_MAX_OUTS} by {limits.SAMPLER_MAX_INPUTS}"
    return (
        _native.refuses((torch.float32,), **wide)
        or _native.refuses(_native.NATIVE_DTYPES, **narrow)
        or _native.refuses((torch.float32, torch.float64), coefficients=coefficients)
    )


def _on_cuda(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    guidance: float,
    noise: Tensor | None,
) -> list[Tensor]:
    outs = _fake(sample, prediction, prediction_uncond, history, coefficients, guidance, noise)
    others, rows = [*history, *([] if noise is None else [noise])], coefficients.tolist()
    _cuda.launch("sampler_step", outs[0], sample, prediction, prediction_uncond, others, rows, guidance, outs)
    return outs


def _on_triton(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    guidance: float,
    noise: Tensor | None,
) -> list[Tensor]:
    outs = _fake(sample, prediction, prediction_uncond, history, coefficients, guidance, noise)
    others = [*history, *([] if noise is None else [noise])]
    rows = coefficients.flatten().tolist()
    _triton.launch("sampler_step", outs[0], sample, prediction, prediction_uncond, others, rows, float(guidance), outs)
    return outs


def _gpu_refuses(
    sample: Tensor,
    prediction: Tensor,
    prediction_uncond: Tensor | None,
    history: Sequence[Tensor],
    coefficients: Tensor,
    guidance: float,
    noise: Tensor | None,
) -> str | None:
    wide = {"sample": sample, "noise": noise, **{f"history[{i}]": h for i, h in enumerate(history)}}
    narrow = {"prediction": prediction, "prediction_uncond": prediction_uncond}
    reason = _triton.refuses((torch.float32,), sample.device, **wide)
    reason = reason or _triton.refuses(_triton.DTYPES, sample.device, **narrow)
    for name, tensor in {**wide, **narrow}.items():
        if reason is None and tensor is not None and not tensor.is_contiguous():
            reason = f"{name} is not contiguous"
    if reason is None and coefficients.device.type != "cpu":
        reason = f"coefficients are on {coefficients.device}: reading them would wait for it"
    if reason is None and (coefficients.shape[0] > 8 or coefficients.shape[1] > 16):
        reason = "coefficients are larger than 8 by 16"
    return reason


sampler_step.register("cuda", _on_cuda, _gpu_refuses, _cuda.unavailable)
sampler_step.register("triton", _on_triton, _gpu_refuses, _triton.unavailable)
sampler_step.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
