"""The inverse of cutting a video into patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from pysora.ops import _cpu as _native
from pysora.ops import _cuda, _triton
from pysora.ops._checks import need
from pysora.ops._registry import op


def _shape(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int, int, int]:
    need(tokens.ndim == 3, "tokens", "[B, L, pt*ph*pw*C]", list(tokens.shape))
    need(len(grid) == 3 and math.prod(grid) == tokens.shape[1], "grid", f"(t, h, w) of L = {tokens.shape[1]}", grid)
    need(len(patch) == 3, "patch", "(pt, ph, pw)", patch)
    area = math.prod(patch)
    need(tokens.shape[2] % area == 0, "tokens", f"a width that is a multiple of pt*ph*pw = {area}", tokens.shape[2])
    T, H, W = (g * p for g, p in zip(grid, patch, strict=True))
    return tokens.shape[0], tokens.shape[2] // area, T, H, W


def _fake(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    return tokens.new_empty(_shape(tokens, grid, patch))


@op("(Tensor tokens, int[] grid, int[] patch) -> Tensor", _fake)
def unpatchify(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Put the values of each token back to their places in the video.

    Args:
        tokens: `[B, L, pt*ph*pw*C]`, any dtype; the values of a token are in the order (pt, ph, pw, C).
        grid: tokens in (t, h, w); their product is L.
        patch: (pt, ph, pw).

    Returns:
        `[B, C, t*pt, h*ph, w*pw]`, contiguous, dtype of tokens.

    Raises:
        ValueError: a shape does not fit.

    Source: the output layout of the Wan transformer.
    """
    shape = _shape(tokens, grid, patch)
    values = tokens.reshape(shape[0], *grid, *patch, shape[1])
    return values.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(shape).contiguous()


def _cpu(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    out = _native.placed(_fake(tokens, grid, patch))
    _native.native().unpatchify(_native.borrow(tokens), grid, patch, _native.borrow(out), _native.threads())
    return out


def _cpu_refuses(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> str | None:
    return _native.refuses(_native.NATIVE_DTYPES, tokens=tokens)


def _on_gpu(launch: Callable[..., None]) -> Callable[..., Tensor]:
    """The op by what `launch` launches: the extension's kernel or Triton's."""

    def run(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
        out = _fake(tokens, grid, patch)
        launch("unpatchify", out, tokens, grid, patch, out)
        return out

    return run


def _triton_refuses(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> str | None:
    reason = _triton.refuses(_triton.DTYPES, tokens.device, tokens=tokens)
    return reason or _triton.too_many(math.prod(tokens.shape[1:]), "values of a sample")


def _cuda_refuses(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> str | None:
    reason = _triton.refuses(_triton.DTYPES, tokens.device, tokens=tokens)
    return reason or _triton.too_many(tokens.numel(), "values")


unpatchify.register("cuda", _on_gpu(_cuda.launch), _cuda_refuses, _cuda.unavailable)
unpatchify.register("triton", _on_gpu(_triton.launch), _triton_refuses, _triton.unavailable)
unpatchify.register("cpu", _cpu, _cpu_refuses, _native.unavailable)
