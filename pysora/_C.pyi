from collections.abc import Sequence

from torch import Tensor

SAMPLER_MAX_OUTS: int
SAMPLER_MAX_INPUTS: int

class Raw:
    """Memory described by hand; strides count elements.

    `dtype` is float32, bfloat16, float16 (on a GPU), int32 or int8; `device` is cpu or cuda:N.
    """

    def __init__(self, pointer: int, dtype: str, shape: Sequence[int], strides: Sequence[int], device: str) -> None: ...

def cpu_isa() -> str:
    """Return the instruction set whose kernels run: the best of `cpu_isas`, or what PYSORA_CPU_ISA names."""

def use_large_pages(address: int, bytes: int) -> None:
    """Ask the system for large pages in this stretch of memory."""

def cpu_isas() -> list[str]:
    """Return the instruction sets that this processor runs, best first."""

def use_cpu_isa(isa: str) -> None:
    """Run the kernels of one instruction set from now on. ValueError where this processor lacks it."""

def build_info() -> dict[str, str]:
    """Return version, compiler, cuda_compiler and cuda_targets (empty without one), threads (OpenMP or own pool)."""

# An op runs where its tensors are, on `threads` threads of the CPU or on the `stream` of their CUDA device: it returns
# before its kernels have run, and raises RuntimeError where they could not be launched.

def adaln(
    x: Tensor | Raw,
    table: Tensor | Raw | None,
    index: Tensor | Raw | None,
    gain: Tensor | Raw | None,
    bias: Tensor | Raw | None,
    eps: float,
    layer: bool,
    out: Tensor | Raw,
    threads: int,
    stream: int = 0,
) -> None: ...
def adaln_backward(
    grad: Tensor | Raw,
    x: Tensor | Raw,
    table: Tensor | Raw | None,
    index: Tensor | Raw | None,
    gain: Tensor | Raw | None,
    bias: Tensor | Raw | None,
    eps: float,
    layer: bool,
    out: Tensor | Raw,
    sums: Tensor | Raw,
    threads: int,
) -> None:
    """Gradients of `adaln`: out is that of x; sums, zeros before, is fp32 [threads, (2U + 3) * D].

    A row holds a thread's part of the gradients of table [U, 2, D], gain [D] and bias [D], and D values of no use.
    """

def causal_conv3d(
    x: Tensor | Raw,
    weight: Tensor | Raw,
    bias: Tensor | Raw | None,
    cache: Tensor | Raw | None,
    norm_gamma: Tensor | Raw | None,
    residual: Tensor | Raw | None,
    upsample: bool,
    out: Tensor | Raw,
    new_cache: Tensor | Raw,
    scales: Tensor | Raw | None,
    threads: int,
    stream: int = 0,
) -> None:
    """See `pysora.ops.causal_conv3d`; on a GPU alone. scales is fp32 [B, kt-1+T, H, W], with norm_gamma alone."""

def ceiling_flops(bf16: bool, rounds: int, threads: int) -> float:
    """Run multiply-adds that stay in the registers on `threads` threads; return the floating-point operations done."""

def ceiling_triad(a: Tensor | Raw, b: Tensor | Raw, c: Tensor | Raw, threads: int) -> float:
    """Write b + 3c to a, all fp32 [n], n a multiple of 16, a aligned to 64 bytes; return the bytes moved, 12 n."""

def gate_residual(
    x: Tensor | Raw,
    y: Tensor | Raw,
    gate: Tensor | Raw,
    index: Tensor | Raw | None,
    out: Tensor | Raw,
    threads: int,
    stream: int = 0,
) -> None: ...
def linear_workspace(tokens: int, E: int, D: int, threads: int, split: bool) -> int:
    """Return the fp32 values of workspace that `linear` needs."""

def gate_residual_backward(
    grad: Tensor | Raw,
    y: Tensor | Raw,
    gate: Tensor | Raw,
    index: Tensor | Raw | None,
    out: Tensor | Raw,
    sums: Tensor | Raw,
    threads: int,
) -> None:
    """Gradients of `gate_residual`: out is y's; sums, fp32 [threads, U, D] and zeros before, are parts of gate's."""

def gelu(x: Tensor | Raw, grad: Tensor | Raw | None, out: Tensor | Raw, threads: int) -> None:
    """GELU in its tanh form of contiguous values; with grad, that times its derivative at x."""

def linear(
    x: Tensor | Raw,
    weight: Tensor | Raw,
    bias: Tensor | Raw | None,
    epilogue: str,
    residual: Tensor | Raw | None,
    gate: Tensor | Raw | None,
    index: Tensor | Raw | None,
    out: Tensor | Raw,
    workspace: Tensor | Raw | None,
    threads: int,
    split: bool,
    stream: int = 0,
) -> bool:
    """See `pysora.ops.linear`; x and out are [B, L, D] and [B, L, E], weight has its rows side by side.

    split: fp32 tokens are multiplied as three bf16 parts each, which needs a matrix unit; returns False, with nothing
        done, where bf16 does not hold the weight.
    """

def linear_int8_workspace(tokens: int, E: int, D: int, threads: int) -> int:
    """Return the fp32 values of workspace that `linear_int8` needs."""

def linear_int8(
    x: Tensor | Raw,
    weight: Tensor | Raw,
    scale: Tensor | Raw,
    bias: Tensor | Raw | None,
    epilogue: str,
    residual: Tensor | Raw | None,
    gate: Tensor | Raw | None,
    index: Tensor | Raw | None,
    out: Tensor | Raw,
    workspace: Tensor | Raw | None,
    threads: int,
    stream: int = 0,
) -> None:
    """See `pysora.ops.linear_int8`; as `linear`, with an int8 weight and its fp32 scale."""

def noise(out: Tensor | Raw, seed: int, sample: int, origin: Sequence[int], threads: int, stream: int = 0) -> None: ...
def norm_silu(
    x: Tensor | Raw, gamma: Tensor | Raw, silu: bool, out: Tensor | Raw, threads: int, stream: int = 0
) -> None: ...
def patch_embed_workspace(tokens: int, D: int, depth: int, threads: int) -> int:
    """Return the fp32 values of workspace that `patch_embed` needs; depth is C*pt*ph*pw."""

def patch_embed(
    video: Tensor | Raw,
    weight: Tensor | Raw,
    bias: Tensor | Raw | None,
    out: Tensor | Raw,
    workspace: Tensor | Raw | None,
    threads: int,
    stream: int = 0,
) -> None: ...
def qk_norm_rope(
    x: Tensor | Raw,
    gain: Tensor | Raw,
    cos: Tensor | Raw | None,
    sin: Tensor | Raw | None,
    eps: float,
    out: Tensor | Raw,
    threads: int,
    stream: int = 0,
) -> None: ...
def qk_norm_rope_backward(
    grad: Tensor | Raw,
    x: Tensor | Raw,
    gain: Tensor | Raw,
    cos: Tensor | Raw | None,
    sin: Tensor | Raw | None,
    eps: float,
    out: Tensor | Raw,
    sums: Tensor | Raw,
    threads: int,
) -> None:
    """Gradients of `qk_norm_rope`: out is that of x; sums, zeros before, is fp32 [threads, 2, N * K].

    The first values of a row, as many as gain has, are a thread's part of the gradient of gain.
    """

def sampler_step(
    sample: Tensor | Raw,
    prediction: Tensor | Raw,
    prediction_uncond: Tensor | Raw | None,
    others: Sequence[Tensor | Raw],
    coefficients: Sequence[Sequence[float]],
    guidance: float,
    outs: Sequence[Tensor | Raw],
    threads: int,
    stream: int = 0,
) -> None: ...
def spacetime_attention_workspace(pairs: int, longest_k: int, K: int, threads: int) -> int:
    """Return the fp32 values of workspace for so many (sample, head) pairs and so many keys at most."""

def spacetime_attention(
    q: Tensor | Raw,
    k: Tensor | Raw,
    v: Tensor | Raw,
    scale: float,
    key_bias: Tensor | Raw | None,
    q_offsets: Tensor | Raw | None,
    k_offsets: Tensor | Raw | None,
    int8: bool,
    out: Tensor | Raw,
    lse: Tensor | Raw | None,
    workspace: Tensor | Raw | None,
    threads: int,
    stream: int = 0,
) -> None: ...
def unpatchify(
    tokens: Tensor | Raw,
    grid: Sequence[int],
    patch: Sequence[int],
    out: Tensor | Raw,
    threads: int,
    stream: int = 0,
) -> None: ...
