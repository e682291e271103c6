"""`pysora bench --device cuda` without a GPU: the extension's kernels run on the CPU, and events are a stand-in's."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from pysora import bench, cli
from pysora.bench.cuda import Clock, device_of

TAKEN = ("adaln", "gate_residual", "noise", "norm_silu", "patch_embed", "qk_norm_rope", "unpatchify")


class Event:
    """An event whose time is how often any was recorded, in milliseconds."""

    recorded: ClassVar[list[Event]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.recorded.append(self)
        self.at = len(self.recorded)

    def synchronize(self) -> None:
        assert self is self.recorded[-1]

    def elapsed_time(self, end: Event) -> float:
        return float(end.at - self.at)


@pytest.fixture
def with_events(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(Event, "recorded", [])
    return gpu


@pytest.mark.parametrize("name", TAKEN)
def test_a_case_runs_on_the_device(with_events, name):
    """Against the device's own ceilings and torch, accuracy first; each call stands between two events."""
    chosen = bench.cases([name], size="tiny")
    with with_events as gpu:
        rows = list(bench.run(chosen, "tiny", device="cuda"))
    ours = [row for row in rows if row.contender == bench.OURS]
    assert len(ours) == len(chosen) and {row.backend for row in ours if row.dtype == "bf16" or name == "noise"} == {
        "cuda"
    }
    assert gpu.launches
    assert bench.Report.of(rows, "tiny", "cuda").machine["device"] == "fake GPU"
    for row in rows:
        assert row.milliseconds.median == 1.0 and row.percent is not None
        assert row.error is None or row.error < (1e-4 if row.dtype == "fp32" else 0.05)


def test_attention_has_torchs_flash_attention_beside_it():
    found = bench.cases(["spacetime_attention"], ["fp32", "bf16"], "tiny")
    assert [(case.dtype, case.label) for case in found if list(case.on_cuda) == ["FlashAttention"]] == [
        ("bf16", "20 tokens, 2 heads of 16")
    ]


def test_what_no_gpu_kernel_takes_is_left_out(with_events):
    (rounded,) = (case for case in bench.cases(["spacetime_attention"], ["bf16"], "tiny") if case.cpu_only)
    assert rounded.label == "20 tokens, 2 heads of 16, int8 scores"
    with with_events:
        assert not list(bench.run([rounded], "tiny", device="cuda"))


def test_the_clock_empties_the_cache_before_each_call(with_events):
    with with_events:
        clock = Clock(torch.device("cuda"))
        clock._cache.fill_(1)
        assert clock(lambda: None) == 1e-3
        assert len(clock._cache) == 8192 and not clock._cache.any()


def test_devices_that_are_not_there():
    with pytest.raises(ValueError, match=r"device must be cpu, cuda or cuda:N, got mps"):
        device_of("mps")
    with pytest.raises(ValueError, match=r"device must be cpu, cuda or cuda:N, got nonsense"):
        device_of("nonsense")
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"a CUDA device of this machine, which has {count}, got cuda:{count}"):
        device_of(f"cuda:{count}")
    from typer.testing import CliRunner

    result = CliRunner().invoke(cli.app, ["bench", "adaln", "--device", f"cuda:{count}"])
    assert result.exit_code == 2 and "device must be a CUDA device of this machine" in result.stderr


def test_compilers_for_the_cpu_are_refused(with_events):
    with pytest.raises(ValueError, match="openvino runs on the CPU alone, got device cuda"):
        bench.run([], device="cuda", compilers=["openvino"])
