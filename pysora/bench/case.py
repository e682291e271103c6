"""A case of the benchmark: one op or model at one shape and dtype, and who computes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# full: shapes of the public models. quick: of the embedded model. tiny: only to see that everything runs.
SIZES = ("full", "quick", "tiny")
ROTATED_BYTES = 1 << 27
CPU = torch.device("cpu")
PIPELINE = "diffusers in fp32"  # what whole videos are compared with: near to the truth, not the truth
SCORED = 64  # rows of a large result that are compared with float64


class Draw:
    """Random normal values in one dtype on one device, always the same ones; `host` leaves them in the CPU's memory."""

    def __init__(self, dtype: str, device: torch.device) -> None:
        self.dtype, self.device = DTYPES[dtype], device
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, fp32: bool = False, host: bool = False) -> Tensor:
        values = torch.randn(shape, generator=self.generator).to(torch.float32 if fp32 else self.dtype)
        return values.to(device="cpu" if host else self.device)


@dataclass(frozen=True)
class Case:
    """One op or model at one shape.

    label: the shape, for a reader.
    unit: GFLOP/s or GB/s, what limits it; None where neither is known.
    amount: floating-point operations, or bytes that must be read and written.
    intensity: operations for each byte that must move at least, about; None where that is not known.
    draw: makes the arguments that everyone below takes: the op's own, or models and their inputs.
    ours, rivals: the functions that are timed. The first rival is the baseline, which torch.compile and the like get.
    on_cuda: more rivals, on a CUDA device alone.
    exact: the truth, from the arguments in float64, about what `part` picks of a result; None where there is none.
    arguments: the op's own, from all that were drawn.
    against: what `exact` is.
    unlike: the rivals that compute other values, which are no measure of accuracy.
    allowed: pysora's largest error, where it approximates by intent; None: twice the baseline's.
    length: tokens, where the case belongs to a row of lengths.
    cpu_only: whether no GPU kernel takes it.
    compiles: whether compilers make rivals of the baseline.
    rotates: whether there are to be several sets of arguments, more than fit into the caches.
    """

    op: str
    label: str
    dtype: str
    draw: Callable[[Draw], tuple[Any, ...]]
    ours: Callable[..., Any]
    rivals: Mapping[str, Callable[..., Any]]
    on_cuda: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    unit: str | None = None
    amount: float = 0.0
    intensity: float | None = None
    exact: Callable[..., Any] | None = None
    part: Callable[[Any], Any] = field(default=lambda result: result)
    arguments: Callable[..., tuple[Any, ...]] = field(default=lambda *args: args)
    against: str = "float64"
    unlike: tuple[str, ...] = ()
    allowed: float | None = None
    length: int | None = None
    cpu_only: bool = False
    compiles: bool = True
    rotates: bool = False

    @property
    def ceiling(self) -> str | None:
        """Which of the ceilings limits it."""
        return {None: None, "GB/s": "memory"}.get(self.unit, self.dtype)

    def sets(self, device: torch.device = CPU) -> list[tuple[Any, ...]]:
        """The sets of arguments to rotate through, on a device."""
        draw = Draw(self.dtype, device)
        first = self.draw(draw)
        if not self.rotates:
            return [first]
        count = -(-ROTATED_BYTES // max(1, size_in_bytes(first)))
        return [first, *(self.draw(draw) for _ in range(min(count, 8) - 1))]


def item(dtype: str) -> int:
    """Bytes of a value."""
    return DTYPES[dtype].itemsize


def has_diffusers() -> bool:
    """Whether diffusers can be a rival here."""
    return importlib.util.find_spec("diffusers") is not None


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` applied to the floating-point tensors of nested lists and tuples."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    return type(value)(map_tensors(v, change) for v in value) if type(value) in (list, tuple) else value


def size_in_bytes(value: Any) -> int:
    """Bytes of all tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(size_in_bytes(v) for v in value) if isinstance(value, list | tuple) else 0


def error(result: Any, exact: Any) -> float:
    """Largest difference relative to the largest value, over the tensors of a result; inf where it is not finite."""
    results = [result] if isinstance(result, Tensor) else list(result)
    truths = [exact] if isinstance(exact, Tensor) else list(exact)
    worst = 0.0
    for actual, truth in zip(results, truths, strict=True):
        if truth.numel() == 0:
            continue
        off = float((actual.double() - truth.double()).abs().max() / truth.double().abs().max().clamp_min(1e-30))
        worst = max(worst, off if off == off else float("inf"))
    return worst
