"""The compiled extension: what is in it, how its instruction set is chosen, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pysora import _C, ops

BINARY = Path(_C.__file__)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the same pysora."""
    package = str(BINARY.parent.parent)
    env = {**os.environ, **environment, "PYTHONPATH": package, "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True)


def test_no_symbol_of_torch():
    listing = subprocess.run(["nm", "-D", str(BINARY)], capture_output=True, text=True, check=True).stdout
    names = listing.splitlines()
    assert any("PyInit__C" in name for name in names)
    assert not [n for n in names if any(word in n for word in ("torch", "c10", "N2at"))]
    assert b"libtorch" not in BINARY.read_bytes() and b"libc10" not in BINARY.read_bytes()


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_the_environment_picks_the_instruction_set(isa):
    done = python("from pysora import _C; print(_C.cpu_isa())", PYSORA_CPU_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


def test_an_unknown_instruction_set_is_an_error():
    done = python("from pysora import _C; _C.cpu_isa()", PYSORA_CPU_ISA="mmx")
    assert done.returncode != 0 and "PYSORA_CPU_ISA: this processor runs" in done.stderr
    with pytest.raises(ValueError, match=r"isa: this processor runs .*baseline, got mmx"):
        _C.use_cpu_isa("mmx")


def test_build_info():
    import pysora

    info = _C.build_info()
    assert info["version"] == pysora.__version__
    assert info["compiler"] and info["cuda_compiler"] is not None
    assert info["threads"] in ("OpenMP", "own pool")


def test_threads_agree_without_an_openmp_runtime():
    """numpy alone is imported: the extension's own threads run, give the same bits, and survive a fork."""
    code = """
import os, numpy as np
from pysora import _C
def draw(threads):
    out = np.full((5, 2, 64, 33), np.nan, np.float32)
    strides = [s // 4 for s in out.strides]
    _C.noise(_C.Raw(out.ctypes.data, 'float32', out.shape, strides, 'cpu'), 3, 0, [0, 0, 0], threads)
    return out
assert _C.build_info()['threads'] == 'own pool', _C.build_info()
assert all(np.array_equal(draw(3), draw(1)) for _ in range(50))
pid = os.fork()
if pid == 0:
    os._exit(0 if np.array_equal(draw(3), draw(1)) else 1)
assert os.waitpid(pid, 0)[1] == 0
print('same')
"""
    done = python(code)
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("threads", [1, 2, 5, 70])
def test_every_task_is_done_once_by_any_number_of_threads(threads):
    """Of a hundred tasks, also with more threads than a job has ranges (64): each token is counted by its task."""
    L, D = 66000, 48
    x, y, gate = torch.zeros(1, L, D), torch.ones(1, L, D), torch.ones(1, D, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ops.gate_residual(x, y, gate, backend="cpu").sum().backward()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(gate.grad, torch.full((1, D), float(L)))


def test_raw_memory_gives_the_same_result():
    q = torch.randn(1, 9, 2, 16)
    out, scratch = torch.full_like(q, torch.nan), torch.empty(_C.spacetime_attention_workspace(2, 9, 16, 1))
    raw = [_C.Raw(t.data_ptr(), "float32", t.shape, t.stride(), "cpu") for t in (q, out, scratch)]
    _C.spacetime_attention(raw[0], raw[0], raw[0], 0.25, None, None, None, False, raw[1], None, raw[2], 1)
    assert torch.equal(out, ops.spacetime_attention(q, q, q, backend="cpu"))


def test_a_torch_without_the_exchange_table_still_works(monkeypatch):
    from pysora.ops import _cpu

    video, weight = torch.randn(1, 2, 1, 2, 2), torch.randn(3, 2, 1, 2, 2)
    expected = ops.patch_embed(video, weight, backend="cpu")
    monkeypatch.setattr(_cpu, "has_exchange_table", lambda: False)
    assert torch.equal(ops.patch_embed(video, weight, backend="cpu"), expected)


def test_large_results_ask_for_large_pages(monkeypatch):
    from pysora.ops import _cpu

    asked = []
    monkeypatch.setattr(_cpu, "native", lambda: SimpleNamespace(use_large_pages=lambda *area: asked.append(area)))
    small, large = torch.empty(4), torch.empty(_cpu.LARGE // 4)
    assert _cpu.placed(small) is small and _cpu.placed(large) is large
    assert asked == [(large.data_ptr(), large.nbytes)]


def test_large_pages_leave_the_values():
    values = torch.arange(1 << 21)
    for first, count in ((0, values.nbytes), (3, 5), (4000, 4100), (8, 0)):
        _C.use_large_pages(values.data_ptr() + first, count)
    assert torch.equal(values, torch.arange(1 << 21))


def test_refusals_name_the_argument():
    out = torch.empty(1, 1, 2, 2)
    for wrong, error, message in (
        (out.double(), ValueError, "out: need float32 or bfloat16, got float64"),
        (out.bfloat16(), ValueError, "out: need float32, got bfloat16"),
        (out[0], ValueError, "out: need 4 dimensions, got 3"),
        (out.transpose(2, 3)[:, :, :, :1].expand(1, 1, 2, 2), ValueError, "out: need a contiguous tensor, got strides"),
        (out.to("meta"), ValueError, "out: need a tensor whose memory torch lends"),
        ([1.0], TypeError, "out: need a torch.Tensor, got <class 'list'>"),
    ):
        with pytest.raises(error, match=message):
            _C.noise(wrong, 0, 0, [0, 0, 0], 1)
    with pytest.raises(ValueError, match="threads: need at least 1, got 0"):
        _C.noise(out, 0, 0, [0, 0, 0], 0)
    q = torch.zeros(1, 4, 1, 8)
    with pytest.raises(ValueError, match="workspace: need at least"):
        _C.spacetime_attention(q, q, q, 1.0, None, None, None, False, q.clone(), None, torch.empty(3), 1)
