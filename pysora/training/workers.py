"""Several processes that train one model: each draws clips of its own, and all take the mean of their gradients.

On a few cores that is faster than as many threads in one process: the products of a small transformer are too small to
be shared out, and what lies between them is not shared out at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


@contextmanager
def group(count: int, job: Callable[[], object]) -> Iterator[None]:
    """While the block runs, `count - 1` other processes run `job` beside it; all of them are one group.

    The caller leads: it alone writes files. `job` must be picklable, and reach the same steps as the block.
    """
    if count == 1:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        threads = max(1, torch.get_num_threads() // count)
        spawn = mp.get_context("spawn")
        helpers = [spawn.Process(target=_help, args=(r, count, meeting, threads, job)) for r in range(1, count)]
        for helper in helpers:
            helper.start()
        before = torch.get_num_threads()
        try:
            _join(0, count, meeting, threads)
            yield
        finally:
            # First the helpers: one that waits for the leader would report that it is gone.
            for helper in helpers:
                helper.terminate()
                helper.join()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(before)


def _join(rank: int, count: int, meeting: str, threads: int) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)


def _help(rank: int, count: int, meeting: str, threads: int, job: Callable[[], object]) -> None:
    _join(rank, count, meeting, threads)
    try:
        job()
    except KeyboardInterrupt:
        # The leader was interrupted too, and says so.
        raise SystemExit(1) from None


def rank() -> int:
    """This process's number in its group; 0 leads, and is alone where there is no group."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def dismiss() -> None:
    """End this process unless it leads: the work that helpers are for is done."""
    if rank():
        raise SystemExit(0)


def mean(tensors: list[Tensor]) -> None:
    """Put the mean over the group into each of the float32 `tensors`, which every process has in the same shapes."""
    if not dist.is_initialized():
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def total(number: int) -> int:
    """The sum of `number` over the group."""
    if not dist.is_initialized():
        return number
    both = torch.tensor(number)
    dist.all_reduce(both)
    return int(both)


def leading(number: float) -> float:
    """The leader's `number`."""
    if not dist.is_initialized():
        return number
    told = torch.tensor(number, dtype=torch.float64)
    dist.broadcast(told, 0)
    return float(told)
