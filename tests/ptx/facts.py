"""Facts of compiled kernels, read from cubins: registers, spills, stack, calls, tensor-core instructions, occupancy.

python -m ptx.facts csrc/cuda/adaln.cu      # a table for every architecture that people own
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ptx.compiler import compile, nvcc
from ptx.names import readable

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")
NO_CUOBJDUMP = "no cuobjdump: it is not on the PATH, and neither Triton nor PyPI's nvidia-cuda-cuobjdump is installed"


@dataclass(frozen=True)
class Chip:
    """What a multiprocessor holds (CUDA Programming Guide, "Technical specifications per compute capability")."""

    threads: int
    blocks: int
    shared_kib: int  # 1 KiB of each block's part is the system's
    registers: int = 65536


CHIPS = {
    "80": Chip(2048, 32, 164),
    "86": Chip(1536, 16, 100),
    "89": Chip(1536, 24, 100),
    "90": Chip(2048, 32, 228),
    "100": Chip(2048, 32, 228),
    "120": Chip(1536, 24, 100),
}


@dataclass
class Facts:
    """One kernel on one architecture."""

    kernel: str
    arch: str
    registers: int
    stack: int
    local: int  # bytes of spilled registers and of arrays that are not in registers
    shared: int  # bytes of static shared memory
    sass: Counter[str] = field(default_factory=Counter)  # machine instructions by opcode

    def count(self, pattern: str) -> int:
        """Return how many machine instructions match a pattern."""
        return sum(n for op, n in self.sass.items() if re.match(pattern, op))

    @property
    def spills(self) -> int:
        """Loads from and stores to local memory."""
        return self.count(r"LDL|STL")

    @property
    def calls(self) -> int:
        """Calls: slow paths such as IEEE division."""
        return self.count(r"CALL")

    @property
    def tensor_core(self) -> int:
        """Instructions of the tensor cores; HFMA2.MMA is none."""
        return self.count(r"(H|Q|I|D|B|O)MMA|(H|Q|I)GMMA|UTC\w*MMA")

    def blocks_per_sm(self, threads: int, dynamic_shared: int = 0) -> int:
        """Return how many blocks of so many threads one multiprocessor runs at once."""
        return blocks_per_sm(self.arch, self.registers, threads, self.shared + dynamic_shared)


def chip(arch: str) -> Chip:
    """Return the multiprocessor of an architecture such as sm_90a."""
    return CHIPS[re.sub(r"\D", "", arch)]


def blocks_per_sm(arch: str, registers: int, threads: int, shared: int) -> int:
    """Return how many blocks fit: registers by warp in units of 256 in each of four parts, memory in units of 128."""
    on = chip(arch)
    warps = -(-threads // 32)
    by_threads = on.threads // (32 * warps)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = (on.registers // 4 // per_warp * 4) // warps if registers else on.blocks
    by_shared = on.shared_kib * 1024 // (-(-(shared + 1024) // 128) * 128)
    return min(on.blocks, by_threads, by_registers, by_shared)


@functools.cache
def cuobjdump() -> str | None:
    """Return cuobjdump: on the PATH, beside nvcc, from Triton or from PyPI; None without one."""
    if found := shutil.which("cuobjdump"):
        return found
    places = [Path(str(nvcc())).resolve().parent]
    for folder in map(Path, sys.path):
        places += [folder / "triton/backends/nvidia/bin", folder / "nvidia/cuda_cuobjdump/bin"]
        places += sorted(folder.glob("nvidia/cu[0-9]*/bin"), reverse=True)
    return next((str(place / "cuobjdump") for place in places if (place / "cuobjdump").is_file()), None)


def _dump(option: str, path: str | Path) -> str:
    tool = cuobjdump()
    if tool is None:
        raise RuntimeError(NO_CUOBJDUMP)
    return subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout


# An instruction's address, opcode and operands; an architecture, in one of two forms; a function.
SASS = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)([^;\n]*)"
    r"|code for (sm_\w+)|\.target\s+(sm_\w+)|Function : (\S+)",
    re.MULTILINE,
)


def _opcode(address: str, name: str, operands: str) -> str:
    """The opcode of a line of SASS: a jump that ptxas writes as a call of the instruction after the next is BRA."""
    if not name.startswith("CALL"):
        return name
    target = re.search(r"0x([0-9a-f]+)", operands)
    return "BRA" if target is not None and int(target[1], 16) - int(address, 16) == 32 else name


def read(path: str | Path) -> list[Facts]:
    """Return the facts of every kernel and architecture in a cubin, or in a library that holds cubins."""
    found: dict[tuple[str, str], Facts] = {}
    arch, facts = "", Facts("", "", 0, 0, 0, 0)
    usage = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    for m in SASS.finditer(_dump("-sass", path)):
        address, opcode, operands, *others, function = m.groups()
        if address:
            facts.sass[_opcode(address, opcode, operands)] += 1
        elif function:
            facts = found.setdefault((arch, function), Facts(readable(function), arch, 0, 0, 0, 0))
        else:
            arch = others[0] or others[1]
    arch = next((a for a, _ in found), "")
    name = ""
    for line in _dump("-res-usage", path).splitlines():
        if m := re.search(r"arch = (sm_\w+)", line):
            arch = m[1]
        elif m := re.match(r"\s*Function (\S+):", line):
            name = m[1]
        elif (m := usage.search(line)) and (arch, name) in found:
            facts = found[arch, name]
            facts.registers, facts.stack, facts.shared, facts.local = (int(n) for n in m.groups())
    return list(found.values())


def of_source(source: str, arch: str, *instantiations: str) -> list[Facts]:
    """Compile a CUDA source for one architecture and return the facts of its kernels."""
    return read(compile(source, *instantiations, arch=arch, output="cubin"))


def main(sources: list[str]) -> None:
    """Print a table of the kernels of some sources, for every architecture."""
    columns = ("kernel", "arch", "registers", "spills", "stack", "calls", "tensor core", "shared")
    print(" | ".join(columns))
    for source in sources:
        for arch in ARCHS:
            for f in sorted(of_source(source, arch), key=lambda f: f.kernel):
                values = (f.kernel, f.arch, f.registers, f.spills, f.stack, f.calls, f.tensor_core, f.shared)
                print(" | ".join(str(value) for value in values))


if __name__ == "__main__":
    main(sys.argv[1:])
