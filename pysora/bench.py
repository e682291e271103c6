"""The kernels against plain torch: interleaved timing in one process, with the error of both against float64."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysora import ops

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUNDS = 3, 1000
Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Row:
    """One op on one backend: medians in milliseconds, largest errors relative to the largest value.

    ratio: torch's time over the kernel's; None where this machine has no kernel for the op and torch runs.
    """

    op: str
    case: str
    dtype: str
    backend: str
    milliseconds: float
    torch_milliseconds: float
    ratio: float | None
    error: float
    torch_error: float


CASES: dict[str, tuple[str, Callable[[Draw], tuple[Any, ...]]]] = {
    "patch_embed": (
        "16x5x32x32 -> 384, patch 1x2x2",
        lambda draw: (draw(1, 16, 5, 32, 32), draw(384, 16, 1, 2, 2), draw(384)),
    ),
    "unpatchify": ("1280 tokens of 64", lambda draw: (draw(1, 1280, 64), (5, 16, 16), (1, 2, 2))),
    "qk_norm_rope": (
        "1280 tokens, 6 heads of 64",
        lambda draw: (draw(1, 1280, 6, 64), draw(384), draw(1280, 32, fp32=True), draw(1280, 32, fp32=True)),
    ),
    "spacetime_attention": (
        "1280 tokens, 6 heads of 64",
        lambda draw: tuple(draw(1, 1280, 6, 64) for _ in range(3)),
    ),
    "adaln": ("1280 tokens of 384", lambda draw: (draw(1, 1280, 384), draw(1, 2, 384))),
    "gate_residual": (
        "1280 tokens of 384",
        lambda draw: (draw(1, 1280, 384), draw(1, 1280, 384), draw(1, 384)),
    ),
    "linear": ("1280 tokens, 384 -> 1536", lambda draw: (draw(1, 1280, 384), draw(1536, 384), draw(1536), "gelu")),
    "causal_conv3d": (
        "32 -> 32, 5x32x32, kernel 3",
        lambda draw: (draw(1, 32, 5, 32, 32), draw(32, 32, 3, 3, 3), draw(32)),
    ),
    "norm_silu": ("32x5x32x32", lambda draw: (draw(1, 32, 5, 32, 32), draw(32))),
    "sampler_step": (
        "16x21x60x104, three results of six",
        lambda draw: (
            draw(1, 16, 21, 60, 104, fp32=True),
            draw(1, 16, 21, 60, 104),
            draw(1, 16, 21, 60, 104),
            [draw(1, 16, 21, 60, 104, fp32=True) for _ in range(3)],
            torch.randn(3, 5, dtype=torch.float64),
            5.0,
        ),
    ),
    "noise": ("16x21x60x104", lambda draw: ((16, 21, 60, 104), 1)),
}


def run(names: Sequence[str] | None = None, dtype: str = "fp32", seconds: float = 2.0) -> list[Row]:
    """Time ops, about `seconds` each and backend.

    Raises ValueError on an unknown op or dtype, or a time that is not above 0.
    """
    chosen = list(names or CASES)
    unknown = [name for name in chosen if name not in CASES]
    if unknown:
        raise ValueError(f"ops must be among {', '.join(CASES)}, got {', '.join(unknown)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be fp32 or bf16, got {dtype!r}")
    if not 0 < seconds <= 600:
        raise ValueError(f"seconds must lie between 0 and 600, got {seconds}")
    with torch.no_grad():
        return [row for name in chosen for row in _time(name, dtype, seconds)]


def table(rows: Sequence[Row]) -> str:
    """The rows for a reader."""
    lines = [f"{'op':20} {'case':36} {'backend':9} {'ms':>9} {'torch ms':>9} {'ratio':>6} {'error':>8} {'torch':>8}"]
    for r in rows:
        ratio = "     -" if r.ratio is None else f"{r.ratio:5.2f}x"
        numbers = f"{r.milliseconds:9.3f} {r.torch_milliseconds:9.3f} {ratio} {r.error:8.1e} {r.torch_error:8.1e}"
        lines.append(f"{r.op:20} {r.case:36} {r.backend:9} {numbers}")
    return "\n".join(lines)


def _time(name: str, dtype: str, seconds: float) -> list[Row]:
    case, make = CASES[name]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, fp32: bool = False) -> Tensor:
        return torch.randn(shape, generator=generator).to(torch.float32 if fp32 else DTYPES[dtype])

    args, op = make(draw), ops.OPS[name]
    exact = _flat(op.reference(*_map(args, lambda t: t.double())))
    bound = op.bind(args, {})
    torch_run = functools.partial(op, *args, backend="reference")
    torch_error = _error(_flat(torch_run()), exact)
    rows = []
    for backend in [impl.backend for impl in op.impls if impl.refuses(bound) is None]:
        kernel = functools.partial(op, *args, backend=backend)
        error = _error(_flat(kernel()), exact)
        # A kernel that is wrong is not worth a time.
        if not error <= max(2 * torch_error, 1e-5):
            raise ArithmeticError(f"{name} on {backend}: error {error:.1e} against torch's {torch_error:.1e}")
        mine, theirs = _alternate(kernel, torch_run, seconds)
        rows.append(Row(name, case, dtype, backend, mine, theirs, theirs / mine, error, torch_error))
    if not rows:
        theirs, _ = _alternate(torch_run, torch_run, seconds)
        rows.append(Row(name, case, dtype, "reference", theirs, theirs, None, torch_error, torch_error))
    return rows


def _alternate(a: Callable[[], object], b: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median milliseconds of both, called in turn: what disturbs the machine disturbs both."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    least, most = ROUNDS
    a(), b()
    while len(times[0]) < least or (time.perf_counter() < end and len(times[0]) < most):
        for call, kept in zip((a, b), times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_map(v, change) for v in value) if isinstance(value, (list, tuple)) else value


def _flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for t in result if isinstance(t, Tensor)]


def _error(results: list[Tensor], exact: list[Tensor]) -> float:
    pairs = zip(results, exact, strict=True)
    return max(float((r.double() - e).abs().max() / e.abs().max().clamp_min(1e-30)) for r, e in pairs)
