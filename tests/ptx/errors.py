"""What a kernel can do wrong, named by kernel, instruction and address."""

from __future__ import annotations

from ptx.names import readable
from ptx.parser import Instruction


class PTXError(RuntimeError):
    """A kernel did what a GPU would not forgive, or what this runner does not know.

    kind: one of KINDS; kernel: its mangled name; instruction: where; address: of the access, where there is one.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        kernel: str = "",
        instruction: Instruction | None = None,
        address: int | None = None,
        where: str = "",
    ) -> None:
        assert kind in KINDS, kind
        self.kind, self.kernel, self.instruction, self.address = kind, kernel, instruction, address
        at = f" at {address:#x}" if address is not None else ""
        line = f", {instruction}" if instruction else ""
        super().__init__(f"{readable(kernel) if kernel else 'PTX'}: {message}{at}{line}{where and ', ' + where}")


KINDS = {
    "bounds": "an access outside of every buffer, or outside of the block's shared memory",
    "alignment": "an address that is no multiple of the access's size",
    "uninitialised": "shared memory read before it was written, or before an asynchronous copy was waited for",
    "race": "two threads touch the same shared memory, one of them writing, without a barrier between them",
    "divergence": "a warp-wide instruction, or a barrier, that only part of a warp reaches",
    "deadlock": "threads wait at a barrier that the others never reach",
    "endless": "more steps than any kernel of these tests needs",
    "launch": "a grid, a block or an amount of shared memory that a GPU refuses",
    "arithmetic": "an integer divided by zero",
    "trap": "the kernel stopped itself",
    "unsupported": "an instruction that this runner does not know",
    "parse": "text that is no PTX",
}
