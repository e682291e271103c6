"""The PTX runner on what nvcc emits: structs by value, memory spaces, line information, and facts of cubins."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from ptx import Kernel, PTXError, Struct, compile, unavailable
from ptx.facts import NO_CUOBJDUMP, Facts, blocks_per_sm, cuobjdump, read
from ptx.names import readable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")

SOURCE = """
#include <cstdint>
struct Params { const float* x; float* out; std::int64_t strides[3]; int count; bool twice; float scale; };
__constant__ float table[4] = {1.0f, 2.0f, 4.0f, 8.0f};

template <int N> __global__ void __launch_bounds__(64) by_struct(const __grid_constant__ Params p, int which) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  float y = p.x[i * p.strides[which]] * p.scale * table[i % N];
  p.out[i] = p.twice ? 2 * y : y;
}
__global__ void reversed(const float* x, float* out) {
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = held[63 - threadIdx.x];
}
__global__ void local_array(const int* order, int* out) {
  int held[16];
  for (int i = 0; i < 16; ++i) held[i] = i * i;
  int sum = 0;
  for (int i = 0; i < 16; ++i) held[order[i]] += i;
  for (int i = 0; i < 16; ++i) sum += held[order[(i + threadIdx.x) % 16]] * i;
  out[threadIdx.x] = sum;
}
__global__ void slow_division(const float* x, float* out) { out[threadIdx.x] = x[threadIdx.x] / x[threadIdx.x + 32]; }
"""
INSTANCE = "template __global__ void by_struct<4>(const __grid_constant__ Params, int);"


def kernel(name: str, source: str = SOURCE) -> Kernel:
    """Compile the little kernels above."""
    return Kernel(compile("tests/gpu/tiny.cu", INSTANCE, text=source), name)


@pytest.mark.parametrize("twice", [False, True])
def test_struct_by_value(twice: bool) -> None:
    """Pointers, an array inside that is indexed at run time, int, bool and float, at C++'s offsets."""
    x, out = torch.randn(300), torch.full((100,), torch.nan)
    params = Struct(x, out, [1, 3, 2], np.int32(70), twice, 0.5)
    kernel("by_struct").launch((2,), (64,), [params, 1])
    expected = x[: 70 * 3 : 3] * 0.5 * torch.tensor([1.0, 2.0, 4.0, 8.0]).repeat(18)[:70] * (2 if twice else 1)
    assert torch.equal(out[:70], expected)
    assert out[70:].isnan().all()


def test_struct_layout_is_the_compilers() -> None:
    """The same bytes as ctypes, which follows the C ABI."""

    class Inner(ctypes.Structure):
        _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int))

    class Outer(ctypes.Structure):
        _fields_ = (
            ("flag", ctypes.c_bool),
            ("inner", Inner),
            ("sizes", ctypes.c_int64 * 2),
            ("eps", ctypes.c_float),
            ("last", ctypes.c_bool),
        )

    values = np.arange(4.0)
    expected = bytes(Outer(True, Inner(4096, 7), (ctypes.c_int64 * 2)(-1, 5), 0.25, True))
    packed = Struct(True, (values, np.int32(7)), [-1, 5], 0.25, True).pack(lambda array: 4096)
    used = [i for i in range(ctypes.sizeof(Outer)) if i not in (1, 2, 3, 4, 5, 6, 7, 20, 21, 22, 23, 45, 46, 47)]
    assert [packed[i] for i in used] == [expected[i] for i in used]
    assert len(packed) == ctypes.sizeof(Outer)


def test_wrong_arguments_are_refused() -> None:
    """Too many, of another size, or of a type that no kernel takes."""
    with pytest.raises(ValueError, match="takes 2 arguments, not 3"):
        kernel("reversed").launch((1,), (64,), [None, None, 0])
    with pytest.raises(ValueError, match=r"takes 56 bytes, not 8"):
        kernel("by_struct").launch((1,), (64,), [Struct(1), 0])
    with pytest.raises(TypeError, match="a number, an array or None, not str"):
        kernel("by_struct").launch((1,), (64,), [Struct("x"), 0])


def test_shared_and_local_memory() -> None:
    """Static shared memory, and an array that is indexed at run time."""
    x, out = torch.randn(64), torch.empty(64)
    kernel("reversed").launch((1,), (64,), [x, out])
    assert torch.equal(out, x.flip(0))
    order, sums = np.random.default_rng(0).permutation(16).astype(np.int32), np.zeros(32, np.int32)
    kernel("local_array").launch((1,), (32,), [order, sums])
    held = np.arange(16) ** 2
    held[order] += np.arange(16)
    assert sums.tolist() == [sum(held[order[(i + t) % 16]] * i for i in range(16)) for t in range(32)]


def test_an_error_names_the_line_of_the_source() -> None:
    """A barrier deleted: the race is at the read, in CUDA C++."""
    mutant = SOURCE.replace("  __syncthreads();\n", "")
    with pytest.raises(PTXError) as caught:
        kernel("reversed", mutant).launch((1,), (64,), [torch.randn(64), torch.empty(64)])
    line = 1 + mutant[: mutant.index("held[63")].count("\n")
    assert caught.value.kind == "race"
    assert str(caught.value).startswith("reversed: shared-memory race, write then read")
    assert f"(tiny.cu:{line}): `ld.shared" in str(caught.value), caught.value


def test_a_launch_beyond_the_kernels_bounds() -> None:
    """__launch_bounds__(64) and 128 threads."""
    with pytest.raises(PTXError, match="at most 64"):
        kernel("by_struct").launch((1,), (128,), [bytes(56), 0])


def test_what_does_not_compile_says_why() -> None:
    """The compiler's own words."""
    with pytest.raises(RuntimeError, match=r"nvcc cannot compile tests/gpu/tiny.cu for compute_80:\n(.|\n)*undefined"):
        compile("tests/gpu/tiny.cu", text="__global__ void k() { missing(); }")


def test_names() -> None:
    """Mangled names, readable."""
    assert readable("_Z6kernelI13__nv_bfloat16Li64ELb0EEvi") == "kernel<bf16, 64, false>"
    assert readable("_ZN6pysora4cuda12_GLOBAL__N__12adaln_kernelI6__halffEEvNS_6ParamsE") == "adaln_kernel<f16, f32>"
    assert readable("triton_kernel") == "triton_kernel"


@pytest.mark.skipif(cuobjdump() is None, reason=NO_CUOBJDUMP)
def test_facts() -> None:
    """Registers, shared memory, a stack where an array is not in registers, a call where a division is IEEE's."""
    cubin = compile("tests/gpu/tiny.cu", INSTANCE, arch="sm_80", output="cubin", text=SOURCE)
    facts: dict[str, Facts] = {f.kernel: f for f in read(cubin)}
    assert set(facts) == {"by_struct<4>", "reversed", "local_array", "slow_division"}
    good = facts["reversed"]
    assert (good.arch, good.stack, good.spills, good.calls, good.tensor_core, good.shared) == ("sm_80", 0, 0, 0, 0, 256)
    assert 0 < good.registers < 32
    assert good.count("LDS") == 1
    assert facts["local_array"].stack > 0
    assert facts["slow_division"].calls > 0


@pytest.mark.skipif(cuobjdump() is None, reason=NO_CUOBJDUMP)
def test_no_tensor_core_instruction_is_missed_or_invented(tmp_path: Path) -> None:
    """HMMA counts, HFMA2.MMA does not."""
    f = Facts("k", "sm_80", 0, 0, 0, 0)
    f.sass.update({"HMMA.16816.F32.BF16": 3, "HFMA2.MMA": 5, "HGMMA.64x64x16.F32.BF16": 2, "LDGSTS.E.128": 1})
    assert f.tensor_core == 5


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "expected"),
    [
        *[("sm_80", 128, 128, 46080, 3), ("sm_80", 32, 1024, 0, 2), ("sm_80", 255, 256, 0, 1)],
        *[("sm_80", 16, 32, 0, 32), ("sm_86", 16, 32, 0, 16), ("sm_89", 40, 128, 0, 12)],
        *[("sm_90a", 168, 128, 98304, 2), ("sm_120", 64, 256, 0, 4)],
    ],
)
def test_occupancy(arch: str, registers: int, threads: int, shared: int, expected: int) -> None:
    """As CUDA's own calculator says (cuda_occupancy.h; 400 random cases agreed)."""
    assert blocks_per_sm(arch, registers, threads, shared) == expected
