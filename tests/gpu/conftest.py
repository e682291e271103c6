"""Fixtures of the GPU tests: the fake GPU, and one clear line where a test needs a real one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ptx.compiler import unavailable

from pysora.models.positions import _kept_tables
from pysora.ops import _cpu, _cuda, _triton

CACHES = (_cuda.unavailable, _triton.unavailable, _triton._too_old, _kept_tables)


@pytest.fixture(scope="session")
def fake_device() -> Any:
    """The extension with the fake runtime inside, built once a session."""
    if reason := unavailable():
        pytest.skip(reason)
    from gpu.fake_gpu import FakeGpu, build

    return FakeGpu(build())


@pytest.fixture
def gpu(fake_device: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A fake GPU of compute capability 8.6 without memory in use; torch finds it, and pysora the extension for it."""
    from gpu.fake_gpu import STREAM

    fake_device.reset()
    monkeypatch.setattr(_cpu, "_extension", lambda: (fake_device.native, None))
    monkeypatch.setattr(_cpu, "has_exchange_table", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "fake GPU")
    properties = SimpleNamespace(total_memory=1 << 30, L2_cache_size=4096)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: STREAM + index, raising=False)
    for cache in CACHES:
        cache.cache_clear()
    yield fake_device
    for cache in CACHES:
        cache.cache_clear()
    if fake_device.error is not None:
        raise fake_device.error
