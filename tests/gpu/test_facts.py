"""Facts of the machine code in the installed extension: a reviewed table, facts.csv, for every kernel and architecture.

    PYSORA_WRITE_FACTS=1 pytest tests/gpu/test_facts.py     # after a change: write the table anew, and look at it

Six values in a cell are those of sm_80, 86, 89, 90a, 100a and 120. Blocks are those that one multiprocessor runs at
once, by registers, shared memory and threads.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from gpu.launches import launches
from ptx.facts import ARCHS, NO_CUOBJDUMP, Facts, cuobjdump, read

from pysora.ops import _cpu

TABLE = Path(__file__).with_name("facts.csv")
COLUMNS = ("kernel", "threads", "shared", "registers", "tensor_core", "calls", "blocks", "compiler")
IEEE = "noise_kernel"  # its square root and quotient are rounded exactly, to have the CPU's bits: a slow path each
LEAST_BLOCKS = 2
pytestmark = pytest.mark.skipif(cuobjdump() is None, reason=NO_CUOBJDUMP)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Facts]]:
    """The facts of every kernel by architecture."""
    native, reason = _cpu._extension()
    if native is None or not native.build_info()["cuda_targets"]:
        pytest.skip(reason or "the extension was built without a CUDA compiler")
    kernels: dict[str, dict[str, Facts]] = defaultdict(dict)
    for facts in read(native.__file__):
        kernels[facts.kernel][facts.arch] = facts
    return dict(sorted(kernels.items()))


@pytest.fixture(scope="module")
def compiler() -> str:
    return str(_cpu.native().build_info()["cuda_compiler"])


def row(kernel: str, facts: dict[str, Facts], threads: int, dynamic: int, compiler: str) -> dict[str, str]:
    """A line of the table."""
    each = [facts[arch] for arch in ARCHS]

    def six(values: Any) -> str:
        return " ".join(map(str, values))

    return {
        "kernel": kernel,
        "threads": str(threads),
        "shared": str(each[0].shared + dynamic),
        "registers": six(f.registers for f in each),
        "tensor_core": six(f.tensor_core for f in each),
        "calls": six(f.calls for f in each),
        "blocks": six(f.blocks_per_sm(threads, dynamic) for f in each),
        "compiler": compiler,
    }


def test_every_kernel_has_code_for_every_architecture(found):
    assert {kernel: set(facts) for kernel, facts in found.items()} == {kernel: set(ARCHS) for kernel in found}


def test_nothing_is_slow(found):
    """No spill, no stack, no local memory, no call; tensor cores exactly where there are products."""
    for kernel, by_arch in found.items():
        for f in by_arch.values():
            assert (f.spills, f.stack, f.local) == (0, 0, 0), f
            assert f.calls == 0 or kernel.startswith(IEEE), f
            products = kernel.startswith(("spacetime_attention_kernel", "patch_embed_kernel", "causal_conv3d_kernel"))
            assert (f.tensor_core > 0) == products, f


def test_the_table_is_true(gpu, found, compiler):
    """Every kernel is launched by some call; with the table's compiler all facts are the table's."""
    seen = launches(gpu)
    assert set(seen) == set(found)
    rows = []
    for kernel, facts in found.items():
        block, dynamic = seen[kernel].block, seen[kernel].shared
        rows.append(row(kernel, facts, block[0] * block[1] * block[2], dynamic, compiler))
        assert min(f.blocks_per_sm(block[0] * block[1] * block[2], dynamic) for f in facts.values()) >= LEAST_BLOCKS
    if "PYSORA_WRITE_FACTS" in os.environ:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with TABLE.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [r["kernel"] for r in table] == [r["kernel"] for r in rows]
    if table[0]["compiler"] == compiler:
        assert table == rows
