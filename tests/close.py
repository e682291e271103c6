"""Accuracy against float64: an op may be off by at most twice what plain torch is in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def to(dtype: torch.dtype, value: Any) -> Any:
    """Return floating-point tensors as `dtype`, also inside lists, and everything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(to(dtype, v) for v in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def error(actual: Tensor, exact: Tensor) -> float:
    """Return the largest difference from `exact`; infinite where `actual` is not finite and `exact` is."""
    difference = (actual.double() - exact).abs()
    same = (actual.double() == exact) | (actual.isnan() & exact.isnan())
    difference = torch.where(same, 0.0, difference.nan_to_num(nan=torch.inf))
    return float(difference.max()) if difference.numel() else 0.0


def assert_close(actual: Tensor, plain: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """Assert that `actual` is as near to `exact` (float64) as `plain` torch in the same dtype, up to `factor`.

    Where plain torch is right to the last bit by luck, one unit in the last place of the largest value is allowed.
    """
    assert exact.dtype == torch.float64
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == plain.dtype, f"{actual.dtype}, expected {plain.dtype}"
    finite = exact[exact.isfinite()].abs()
    last_place = torch.finfo(actual.dtype).eps * (float(finite.max()) if finite.numel() else 0.0)
    allowed = max(factor * error(plain, exact), last_place)
    assert error(actual, exact) <= allowed, f"error {error(actual, exact):.3g}, allowed {allowed:.3g}"


def check(actual: Any, plain: Callable[..., Any], args: Sequence[Any], **kwargs: Any) -> None:
    """Compare a result, or each of several, with a function in plain torch: in the same dtype and in float64."""
    exact = plain(*to(torch.float64, list(args)), **{k: to(torch.float64, v) for k, v in kwargs.items()})
    near = plain(*args, **kwargs)
    if isinstance(actual, Tensor):
        actual, near, exact = [actual], [near], [exact]
    assert len(actual) == len(exact)
    for a, n, e in zip(actual, near, exact, strict=True):
        assert_close(a, n, e)


def check_all(op: Callable[..., Tensor], plain: Callable[..., Tensor], cases: Sequence[Sequence[Any]]) -> None:
    """Compare the results of several calls as one: with few values each, one call's luck would decide."""

    def join(function: Callable[..., Tensor], dtype: torch.dtype | None = None) -> Tensor:
        calls = cases if dtype is None else [to(dtype, list(args)) for args in cases]
        return torch.cat([function(*args).flatten() for args in calls])

    assert_close(join(op), join(plain), join(plain, torch.float64))


def strided(tensor: Tensor) -> Tensor:
    """Return the same values as a view that skips every other element of its memory; the others are NaN."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan, dtype=tensor.dtype)
    return wide[..., 1::2].copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """Return the same values in memory whose dimensions lie in the opposite order."""
    order = list(range(tensor.ndim))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def channels_last(tensor: Tensor) -> Tensor:
    """Return the same values with the channels, dimension 1, side by side in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def part(tensor: Tensor, dim: int) -> Tensor:
    """Return the same values as the middle of memory that is three times as long in `dim`; the rest is NaN."""
    other = torch.full_like(tensor, torch.nan)
    return torch.cat([other, tensor, other], dim).narrow(dim, tensor.shape[dim], tensor.shape[dim])
