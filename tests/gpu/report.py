"""The table of docs/gpu.md: every kernel's error, facts and counts at an aligned shape.

    cd tests && python -m gpu.report        # a few minutes

CUDA kernels run from the extension through the fake GPU (PTX of compute_80), Triton's from the PTX that its compiler
makes for sm_80 and sm_90. Registers and blocks are those of the machine code for sm_80 and sm_90.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from close import error, to
from gpu.aligned import CASES, Case
from gpu.fake_gpu import STREAM, FakeGpu, build
from gpu.launches import on
from ptx.counters import Counters
from ptx.facts import ARCHS, Facts, blocks_per_sm
from ptx.names import readable
from torch import Tensor
from triton_targets import Card, facts

from pysora import ops
from pysora.ops import _cpu

HEAD = (
    *("case", "kernel", "error", "torch's", "registers", "blocks", "tensor cores", "on paper", "conflicts", "sectors"),
    *("128-bit", "warp instructions"),
)


@dataclass
class Line:
    """One kernel on one architecture, at one case."""

    name: str
    kernel: str
    errors: tuple[float, float] | None
    registers: int
    blocks: int
    products: int
    counters: Counters

    def cells(self) -> Iterator[str]:
        """The line's values, as text."""
        c = self.counters
        yield from (self.name, self.kernel)
        yield from ("same bits", "") if self.errors is None else (f"{e:.1e}" for e in self.errors)
        yield from (str(self.registers), str(self.blocks))
        yield from (f"{c.tensor_core_instructions():,}", f"{self.products:,}") if self.products else ("", "")
        yield from (f"{c.conflict_ratio():.2f}", f"{c.coalescing_ratio():.2f}", f"{100 * c.wide_share():.0f} %")
        yield f"{c.warp_instructions():,}"


def errors(case: Case, args: Sequence[Any], result: Any) -> tuple[float, float] | None:
    """Largest errors of a result and of torch in the same dtype, against float64; None where bits are compared."""
    op = ops.OPS[case.op]
    if case.op == "noise":
        assert torch.equal(result, ops.noise(*args[:4], backend="reference"))
        return None
    exact, near = op.reference(*to(torch.float64, list(args))), op.reference(*args)
    if isinstance(result, Tensor):
        result, near, exact = [result], [near], [exact]
    pairs = list(zip(result, near, exact, strict=True))
    return max(error(r, e) for r, _, e in pairs), max(error(n, e) for _, n, e in pairs)


def table() -> dict[str, dict[str, str]]:
    """The reviewed facts of the CUDA kernels, by name."""
    from gpu.test_facts import TABLE

    with TABLE.open(newline="") as file:
        return {row["kernel"]: row for row in csv.DictReader(file)}


def of_cuda(gpu: FakeGpu, name: str, known: dict[str, dict[str, str]]) -> Line:
    """The case through the extension; where an op launches two kernels, the one that does the work is named."""
    case = CASES[name]
    op, args = ops.OPS[case.op], CASES[name].args()
    gpu.reset()

    there = [*args, 0, (0, 0, 0), "cuda:0"] if case.op == "noise" else on(gpu, case.op, args)
    with gpu:
        result = op(*there, backend="cuda")
    if gpu.error is not None:
        raise gpu.error
    launch = max(gpu.launches, key=lambda launch: launch.counters.warp_instructions())
    row = known[readable(launch.kernel)]
    values = {column: row[column].split()[ARCHS.index("sm_80")] for column in ("registers", "blocks")}
    plain = errors(case, args, result)
    return Line(name, "CUDA, sm_80", plain, int(values["registers"]), int(values["blocks"]), case.mma, launch.counters)


def of_triton(name: str, arch: int) -> Line:
    """The case as Triton compiles it for an architecture."""
    case, card = CASES[name], Card(arch, assemble=True)
    args = case.args()
    result = card(ops.OPS[case.op], *args)
    (launch,) = card.launches
    assert launch.cubin is not None
    found: Facts = facts(launch.cubin)
    blocks = blocks_per_sm(f"sm_{arch}", found.registers, 32 * launch.warps, launch.shared)
    products = case.mma if arch == 80 else case.wgmma
    plain = errors(case, args, result)
    return Line(name, f"Triton, sm_{arch}", plain, found.registers, blocks, products, launch.counters)


def main() -> None:
    """Print the table, as Markdown."""
    gpu, known = FakeGpu(build()), table()
    patches = [
        mock.patch.object(_cpu, "_extension", lambda: (gpu.native, None)),
        mock.patch.object(_cpu, "has_exchange_table", lambda: False),
        mock.patch.object(torch.cuda, "device_count", lambda: 1),
        mock.patch.object(torch.cuda, "get_device_capability", lambda device: (8, 0)),
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda index: STREAM, create=True),
    ]
    print("| " + " | ".join(HEAD) + " |\n|---|---|" + "---:|" * (len(HEAD) - 2))
    for name, case in CASES.items():
        lines = []
        for patch in patches:
            patch.start()
        torch.manual_seed(0)
        lines.append(of_cuda(gpu, name, known))
        for patch in patches:
            patch.stop()
        if case.op != "causal_conv3d":
            for arch in (80, 90):
                torch.manual_seed(0)
                lines.append(of_triton(name, arch))
        for line in lines:
            print("| " + " | ".join(line.cells()) + " |", flush=True)


if __name__ == "__main__":
    main()
