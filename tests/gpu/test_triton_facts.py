"""Triton kernels judged without a GPU: facts of what they compile to, and the work they do at aligned shapes."""

from __future__ import annotations

import re
from functools import cache

import pytest
from close import check
from gpu import aligned
from ptx.facts import Facts
from triton_targets import Card, Launch, facts

from pysora import ops

pytest.importorskip("triton", reason="Triton is not installed")
ATTENTION_OF_THE_SAMPLE = 37_600  # warp instructions of a good Triton attention on the same problem
CASES = {
    name: case for name, case in aligned.CASES.items() if case.op != "causal_conv3d"
}  # which Triton leaves to torch
EVERY_CASE = pytest.mark.parametrize("name", CASES)
KERNELS = [
    n for n in CASES if n not in ("norm_silu-pixels", "attention-64", "attention-128")
]  # other arguments of the same
BUILT = [*((n, arch) for n in CASES for arch in (80, 90)), *((n, arch) for n in KERNELS for arch in (100, 120))]


@cache
def launched(name: str, arch: int) -> Launch:
    """Launch the case once: executed where the PTX runner can, that is below sm_100."""
    card = Card(arch, execute=arch < 100, assemble=True)
    op, args = ops.OPS[CASES[name].op], CASES[name].args()
    result = card(op, *args)
    if card.execute and name != "noise":  # whose bits another test compares
        check(result, op.reference, args)
    (launch,) = card.launches
    return launch


@cache
def facts_of(name: str, arch: int) -> Facts:
    cubin = launched(name, arch).cubin
    assert cubin is not None
    return facts(cubin)


@pytest.mark.parametrize(("name", "arch"), BUILT)
def test_compiles_well(name, arch):
    """No stack, no spills, no slow path, and shared memory that every card of the architecture has."""
    case, found, launch = CASES[name], facts_of(name, arch), launched(name, arch)
    assert found.stack == 0 and found.count("LDL|STL") == 0
    if name != "noise" and not (arch == 100 and case.mma):  # IEEE square roots; checks of tensor memory
        assert found.count("CALL") == 0
    assert launch.shared <= {80: 163, 90: 227, 100: 227, 120: 99}[arch] * 1024
    assert found.registers * 32 * launch.warps * case.blocks <= 65536
    tensor_cores = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}[arch]
    assert (found.count(tensor_cores) > 0) == (case.mma > 0)


@pytest.mark.parametrize("arch", [80, 90])
@EVERY_CASE
def test_work(name, arch):
    """No bank conflicts, no wasted sectors, wide accesses, and the bytes and products that it takes on paper."""
    case, launch = CASES[name], launched(name, arch)
    assert launch.counters.conflict_ratio() <= 1.05 and launch.counters.coalescing_ratio() <= 1.05
    if case.wide_bytes is None:
        assert launch.bytes(16) >= case.wide * launch.bytes()
    else:
        assert launch.bytes(16) == case.wide_bytes
    assert case.bytes in (None, launch.bytes())
    assert launch.counters.tensor_core_instructions() == (case.mma if arch == 80 else case.wgmma)


@pytest.mark.parametrize("arch", [80, 90])
def test_attention_works_less_than_the_sample(arch):
    assert launched("attention-64", arch).counters.warp_instructions() <= ATTENTION_OF_THE_SAMPLE


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("name", ["noise", "sampler_step", "gate_residual"])
def test_nothing_is_contracted(name, arch):
    """Products and sums that are rounded one by one; a square root takes two or three FFMA of its own."""
    found = facts_of(name, arch)
    assert not re.search(r"\bfma\.", launched(name, arch).ptx)
    assert found.count("FFMA") <= 3 * found.count("MUFU.RSQ")


@pytest.mark.parametrize("name", ["patch_embed", "attention-64", "attention-128", "attention-128-packed"])
def test_products_become_wgmma_on_hopper(name):
    assert "wgmma.mma_async" in launched(name, 90).ptx and "mma.sync" not in launched(name, 90).ptx
