"""The CUDA backend on a real GPU: skipped where there is none. `pytest -m gpu` runs it, and every op's own tests."""

from __future__ import annotations

import pytest
import torch
from close import assert_close, to
from gpu.launches import ON_HOST
from gpu.test_extension import EVERY_CALL, as_list
from torch import Tensor
from torch.utils._pytree import tree_map

from pysora import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="no CUDA device"),
]


@EVERY_CALL
def test_result_on_another_stream_without_waiting(name, args):
    op = ops.OPS[name]
    values = dict(zip(op.names, op.bind(args, {}), strict=True))
    there = {
        n: v if n == ON_HOST.get(name) else tree_map(lambda t: t.cuda() if isinstance(t, Tensor) else t, v)
        for n, v in values.items()
    }
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            result = as_list(op(**there, backend="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    if name == "noise":
        assert torch.equal(result[0].cpu(), ops.noise(*args[:4]))
        return
    near, exact = as_list(op.reference(**values)), as_list(op.reference(*to(torch.float64, list(values.values()))))
    for actual, plain, true in zip(result, near, exact, strict=True):
        assert_close(actual.cpu(), plain, true)
