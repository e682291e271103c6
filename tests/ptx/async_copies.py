"""cp.async: copies from global to shared memory that arrive when they are waited for."""

from __future__ import annotations

import numpy as np

from ptx.arithmetic import Step
from ptx.copy_queue import Copy, Queue
from ptx.dtypes import Array
from ptx.parser import Instruction, immediate
from ptx.shared_checks import COMING
from ptx.wave import Wave


def decode(wave: Wave, x: Instruction) -> Step:
    """Return the function that runs a cp.async instruction."""
    if x.parts[1] != "async" or "bulk" in x.parts or "mbarrier" in x.parts:
        raise wave.unsupported(x)
    queue = wave.copies
    if "commit_group" in x.parts:
        return lambda mask, full: queue.commit(mask)
    if "wait_group" in x.parts:
        keep = immediate(x.operands[0], 4)
        if keep is None:
            raise wave.unsupported(x)
        return lambda mask, full: queue.wait(mask, keep)
    if "wait_all" in x.parts:

        def wait_all(mask: Array, full: bool) -> None:
            queue.commit(mask)
            queue.wait(mask, 0)

        return wait_all
    return _copy(wave, x, queue)


def _copy(wave: Wave, x: Instruction, queue: Queue) -> Step:
    """cp.async [shared], [global], size, source size: what the source lacks is filled with zeros."""
    size = immediate(x.operands[2], 4)
    if size not in (4, 8, 16):
        raise wave.unsupported(x)
    into, source = wave.address(x.operands[0], x), wave.address(x.operands[1], x)
    extra = len(x.operands) > 3 and "cache_hint" not in x.op
    given = wave.bits(x.operands[3], 4, x) if extra else wave.constant(size, 4)

    def step(mask: Array, full: bool) -> None:
        if ((given != 0) & (given != size) & mask).any():
            raise wave.unsupported(x, "source size (neither 0 nor the whole)")
        need = mask & (given != 0)
        data = np.zeros((wave.T, size), np.uint8)
        if need.any():
            space, memory, index = wave.resolve("global", source(), size, need, bool(need.all()), x)
            if wave.counters is not None:
                wave.counters.access(x, space, index, size, need, False)
            rows = memory.reshape(-1, size)[index // size]
            data = rows if need.all() else np.where(need[:, None], rows, np.uint8(0))
        _, memory, index = wave.resolve("shared", into(), size, mask, full, x)
        if wave.counters is not None:
            wave.counters.access(x, "shared", index, size, mask, True)
        wave.checks.write(index, size, mask, full, x, COMING)
        memory.reshape(-1, size)[index[mask] // size] = 0xFF
        queue.open.append(Copy(mask.copy(), index.copy(), data))

    return step
