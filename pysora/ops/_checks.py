"""Argument checks that several ops share: each raises an error that names the argument, the need and what was seen."""

from __future__ import annotations

import torch
from torch import Tensor


def need(ok: bool, name: str, needed: str, seen: object) -> None:
    """Raise ValueError unless `ok`."""
    if not ok:
        raise ValueError(f"{name}: need {needed}, got {seen}")


def need_shape(tensor: Tensor, name: str, letters: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `tensor` has `shape`; `letters` names its dimensions in the message."""
    if tensor.shape != shape:  # a message for every call would cost a small model time
        need(False, name, f"{letters} = {list(shape)}", list(tensor.shape))


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which statistics and sums are taken: fp32, or fp64 where the input is fp64."""
    return torch.promote_types(dtype, torch.float32)


def need_rows(table: Tensor, index: Tensor | None, B: int, L: int, name: str) -> None:
    """Raise ValueError unless `rows_per_token` can pick a row of `table` for each of L tokens of B samples."""
    if index is None:
        need(table.shape[0] in (1, B), name, f"1 or B = {B} rows where index is None", table.shape[0])
    else:
        need(index.dtype in (torch.int32, torch.int64), "index", "int32", index.dtype)
        need(tuple(index.shape) in ((L,), (B, L)), "index", f"[L] = [{L}] or [B, L] = [{B}, {L}]", list(index.shape))


def rows_per_token(table: Tensor, index: Tensor | None) -> Tensor:
    """Pick each token's row of a table that has one row per distinct timestep.

    Args:
        table: `[U, ...]`, any float dtype.
        index: int `[L]` or `[B, L]` with values in 0..U-1, or None: U is 1 (all samples) or B (one row per sample).

    Returns:
        `[1 or B, 1 or L, ...]`, which broadcasts against `[B, L, ...]`.
    """
    if index is None:
        return table.unsqueeze(1)
    rows = table[index.long()]
    return rows if index.ndim == 2 else rows.unsqueeze(0)
