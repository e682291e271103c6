"""Runs a wave: every thread has a program counter; the lowest one goes first, for all threads that stand there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx import accesses, arithmetic, async_copies, bits, convert, lanes, tensor_cores, wgmma
from ptx.arithmetic import Step
from ptx.dtypes import Array
from ptx.errors import PTXError
from ptx.parser import Instruction, immediate
from ptx.wave import Wave

MODULES = (accesses, arithmetic, bits, convert, lanes, tensor_cores, wgmma)
DECODERS: dict[str, Callable[[Wave, Instruction], Step]] = {
    **{op: module.decode for module in MODULES for op in module.OPS},
    "cp": async_copies.decode,
}
CONTROL = ("bra", "brx", "ret", "exit", "bar", "barrier", "trap", "brkpt")


def decode(wave: Wave, x: Instruction) -> Step | None:
    """Return the function that runs an instruction, None for control flow; what is unknown fails when it is reached."""
    op = x.parts[0]
    if op in CONTROL and x.parts[1:2] != ("warp",):
        return None
    if op in CONTROL:
        return lambda mask, full: _warp_barrier(wave, mask, x)
    try:
        found = DECODERS.get(op)
        if found is None:
            raise wave.unsupported(x)
        return found(wave, x)
    except PTXError as error:
        unknown = error

        def fail(mask: Array, full: bool) -> None:
            raise unknown

        return fail


def _warp_barrier(wave: Wave, mask: Array, x: Instruction) -> None:
    lanes._members(wave, wave.bits(x.operands[0], 4, x), mask, x)
    wave.checks.warp_barrier(mask.reshape(-1, 32).any(1))


class Run:
    """One wave from its first instruction to the exit of its last thread."""

    def __init__(self, wave: Wave, max_steps: int) -> None:
        self.wave, self.max_steps = wave, max_steps
        self.instructions = wave.program.instructions
        self.steps: list[Step | None] = [None] * len(self.instructions)  # decoded when they are first reached
        self.guards: list[Callable[[], Array] | None] = [None] * len(self.instructions)
        self.decoded = [False] * len(self.instructions)
        T = wave.T
        self.pc = np.zeros(T, np.int32)
        self.runs, self.waits, self.done = np.ones(T, bool), np.zeros(T, bool), np.zeros(T, bool)
        self.barrier = np.zeros(T, np.int64)  # which one a thread waits at
        self.expected = np.zeros(T, np.int64)  # how many threads that barrier needs
        self.count = 0

    def _decode(self, pc: int) -> None:
        x = self.instructions[pc]
        if x.guard is not None:
            name, negated = x.guard
            self.guards[pc] = self.wave.predicate(f"!{name}" if negated else name, x)
        self.steps[pc] = decode(self.wave, x)
        self.decoded[pc] = True

    def go(self) -> int:
        """Run, and return the number of steps."""
        while self.runs.any():
            pc = int(self.pc[self.runs].min())
            self._straight(pc, self.runs & (self.pc == pc))
        if not self.done.all():
            raise self._deadlock()
        return self.count

    def _straight(self, pc: int, at: Array) -> None:
        """Run from `pc` for the threads `at` until they jump, stop, or meet others."""
        everyone = bool(at.all())
        first_other = len(self.instructions)
        if not everyone:
            others = self.pc[self.runs & ~at]
            first_other = int(others.min()) if len(others) else first_other
        warps = int(at.reshape(-1, 32).any(1).sum())
        counters = self.wave.counters
        while True:
            if pc >= len(self.instructions):
                self._finish(at)
                return
            if not self.decoded[pc]:
                self._decode(pc)
            x, step, guard = self.instructions[pc], self.steps[pc], self.guards[pc]
            self.count += 1
            if self.count > self.max_steps:
                raise self.wave.error("endless", f"more than {self.max_steps} steps", x, int(np.argmax(at)))
            if counters is not None:
                counters.executed(x.op, warps)
            if step is None:
                if self._control(x, pc, at, guard):
                    return
                pc += 1
                continue
            if guard is None:
                step(at, everyone)
            else:
                mask = guard() if everyone else at & guard()
                if mask.any():
                    step(mask if guard is None else mask.copy(), bool(mask.all()))
            pc += 1
            if pc >= first_other:
                self.pc[at] = pc
                return

    def _control(self, x: Instruction, pc: int, at: Array, guard: Callable[[], Array] | None) -> bool:
        """Run a jump, an exit or a barrier; return False if nobody took it and the threads go straight on."""
        taken = at if guard is None else at & guard()
        if not taken.any():
            return False
        op = x.parts[0]
        self.pc[at] = pc + 1
        if op == "bra":
            self.pc[taken] = self.wave.program.labels[x.operands[0]]
        elif op == "brx":
            self._jump_table(x, taken)
        elif op in ("ret", "exit"):
            self._finish(taken)
        elif op in ("bar", "barrier"):
            self._wait(x, taken)
        else:
            raise self.wave.error("trap", "the kernel stopped itself", x, int(np.argmax(taken)))
        return True

    def _jump_table(self, x: Instruction, taken: Array) -> None:
        program = self.wave.program
        goals = np.array([program.labels[label] for label in program.branch_targets[x.operands[1]]])
        choice = self.wave.bits(x.operands[0], 4, x)
        self.pc[taken] = goals[choice[taken]]

    def _finish(self, threads: Array) -> None:
        self.done |= threads
        self.runs &= ~threads
        self._release()

    def _wait(self, x: Instruction, threads: Array) -> None:
        """bar.sync: threads wait until all of the block, or as many as the instruction says, have come."""
        wave = self.wave
        if "red" in x.parts or "arrive" in x.parts or not x.operands:
            raise wave.unsupported(x)
        rows = (threads | self.done).reshape(-1, 32)
        torn = threads.reshape(-1, 32).any(1) & ~rows.all(1)
        if torn.any():
            missing = 32 * int(np.argmax(torn)) + int(np.argmin(rows[np.argmax(torn)]))
            raise wave.error("divergence", "a barrier is reached by part of a warp", x, missing)
        needs = immediate(x.operands[1], 4) if len(x.operands) > 1 else 0
        if needs is None:
            raise wave.unsupported(x)
        self.barrier[threads] = wave.bits(x.operands[0], 4, x)[threads]
        self.expected[threads] = needs
        self.waits |= threads
        self.runs &= ~threads
        self._release()

    def _release(self) -> None:
        """Let the threads go whose barrier is complete; exited threads count as arrived."""
        if not self.waits.any():
            return
        wave = self.wave
        shape = (wave.count, wave.threads)
        waits, done = self.waits.reshape(shape), self.done.reshape(shape)
        for number in np.unique(self.barrier[self.waits]):
            here = waits & (self.barrier.reshape(shape) == number)
            needs = np.where(here, self.expected.reshape(shape), 0).max(1)
            came = here.sum(1) + np.where(needs == 0, done.sum(1), 0)
            complete = here.any(1) & (came >= np.where(needs == 0, wave.threads, needs))
            if complete.any():
                go = (here & complete[:, None]).reshape(-1)
                self.waits &= ~go
                self.runs |= go
                wave.checks.barrier(complete)

    def _deadlock(self) -> PTXError:
        stands = sorted({int(p) - 1 for p in self.pc[self.waits]})
        first = int(np.argmax(self.waits))
        places = "; ".join(str(self.instructions[p]) for p in stands)
        message = f"deadlock: {self.waits.sum()} threads wait, {self.done.sum()} have exited; they wait at {places}"
        return self.wave.error("deadlock", message, self.instructions[stands[0]], first)
