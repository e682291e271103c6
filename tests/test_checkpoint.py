"""Checkpoints: what is saved comes back in place, and what is broken or hostile is refused with one clear error."""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pysora.checkpoint import CheckpointError, load_module, load_weights, read_json, save_module, weight_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 5

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Net(nn.Module):
    config_class = Config
    keep_fp32 = ("norm",)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.second = nn.Linear(config.width, config.width)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros(3, dtype=torch.int64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = Net(Config())
    net.count += 7
    tensors = {key: value for key, value in net.state_dict().items() if key != "second.weight"}
    path = tmp_path / "net"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(net.config.to_dict()))
    save_file(tensors, path / WEIGHTS)
    return path


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of the folder's weights (None removes one)."""
    tensors = {**load_file(folder / WEIGHTS), **{key.replace("__", "."): value for key, value in changes.items()}}
    save_file({key: value for key, value in tensors.items() if value is not None}, folder / WEIGHTS)


def test_loads_what_is_stored(folder: Path) -> None:
    net, stored = load_module(Net, folder), load_file(folder / WEIGHTS)
    assert not net.training
    for key, value in stored.items():
        assert torch.equal(net.state_dict()[key], value), key
    assert isinstance(net.count, torch.Tensor) and not isinstance(net.count, nn.Parameter)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_shared_tensors_stay_shared(folder: Path) -> None:
    assert (net := load_module(Net, folder, torch.bfloat16)).first.weight is net.second.weight


def test_weights_are_the_mapped_file(folder: Path) -> None:
    """No copy: the parameters lie in pages that the operating system knows as the file's."""
    net = load_module(Net, folder)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(folder / WEIGHTS))]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    assert spans, "the file is not mapped"
    for parameter in net.parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in spans)


def test_writing_to_mapped_weights_leaves_the_file_alone(folder: Path) -> None:
    net, before = load_module(Net, folder), (folder / WEIGHTS).read_bytes()
    with torch.no_grad():
        net.first.weight.fill_(3.0)
    assert (folder / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype(folder: Path, dtype: torch.dtype) -> None:
    net = load_module(Net, folder, dtype)
    assert net.first.weight.dtype == dtype
    assert net.norm.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert net.count.dtype == torch.int64


def test_kept_modules_are_fp32_though_stored_in_half(folder: Path) -> None:
    edit(folder, norm__weight=torch.ones(5, dtype=torch.bfloat16), first__weight=torch.ones(5, 5, dtype=torch.bfloat16))
    net = load_module(Net, folder)
    assert (net.norm.weight.dtype, net.first.weight.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("shard_bytes", [1, 130, 1 << 30])
def test_save_and_load_in_shards(folder: Path, tmp_path: Path, shard_bytes: int) -> None:
    net = load_module(Net, folder)
    with torch.no_grad():
        net.second.weight = nn.Parameter(net.second.weight + 1.0)
    target = tmp_path / "saved"
    save_module(net, target, shard_bytes=shard_bytes)
    assert (len(weight_files(target)) > 1) == (shard_bytes < 1 << 30)
    assert sorted(target.glob(".*")) == []
    again = load_module(Net, target)
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_saving_over_itself_keeps_the_values_and_drops_old_shards(folder: Path) -> None:
    net = load_module(Net, folder)
    net.second.weight = nn.Parameter(net.second.weight.detach().clone())
    values = {key: value.clone() for key, value in net.state_dict().items()}
    for shard_bytes in (1, 1 << 30):
        save_module(net, folder, shard_bytes=shard_bytes)
        net = load_module(Net, folder)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in values.items())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]


def test_failed_save_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, before = load_module(Net, folder), (folder / WEIGHTS).read_bytes()
    monkeypatch.setattr("pysora.checkpoint.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    net.second.weight = nn.Parameter(net.second.weight.detach().clone())
    with pytest.raises(OSError, match="disk full"):
        save_module(net, folder)
    assert (folder / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]


def test_one_error_lists_all_that_does_not_fit(folder: Path) -> None:
    edit(
        folder,
        first__bias=None,
        extra=torch.zeros(2),
        norm__weight=torch.zeros(7),
        norm__bias=torch.zeros(5, dtype=torch.int8),
    )
    with pytest.raises(CheckpointError) as caught:
        load_module(Net, folder)
    message = str(caught.value)
    for part in (
        "missing (1): first.bias",
        "unknown (1): extra",
        "wrong shape (1): norm.weight is [7], needs [5]",
        "unsupported type (1): norm.bias is int8",
        str(folder),
    ):
        assert part in message
    assert isinstance(caught.value, ValueError)


def header(length: int, text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + data


def described(shape: list[int], end: int) -> bytes:
    return json.dumps({"first.bias": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


class Bomb:
    """Unpickling this would be seen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a checkpoint was unpickled",))


HOSTILE = {
    "empty": b"",
    "eight bytes": b"\0" * 8,
    "truncated header": header(400, b'{"first.bias": {"dtype"'),
    "absurd length": header(1 << 62, b"{}"),
    "negative length": header((1 << 64) - 1, b"{}"),
    "not json": header(4, b"abcd"),
    "header is a list": header(2, b"[]"),
    "data cut short": header(len(described([5], 20)), described([5], 20), b"\0" * 8),
    "data past the end": header(len(described([5], 20)), described([5], 20), b"\0" * 40),
    "shape larger than data": header(len(described([1 << 40], 20)), described([1 << 40], 20), b"\0" * 20),
    "shape overflows": header(len(described([1 << 62, 1 << 62], 20)), described([1 << 62, 1 << 62], 20), b"\0" * 20),
    "pickle": pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_module(Net, folder)


def test_truncation_at_every_length(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for length in range(0, len(whole), 17):
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_module(Net, folder)


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"only pickles \(diffusion_pytorch_model.bin\)"):
        load_module(Net, folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        load_module(Net, folder)


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"first.bias": "a.safetensors", "norm.bias": "b.safetensors"}, "2 of 2 shards are missing: a.safetensors, b"),
        ({"first.bias": "../net/" + WEIGHTS}, "in the same folder"),
        ({"first.bias": "/etc/passwd"}, "in the same folder"),
        ({"first.bias": "weights.bin"}, "in the same folder"),
        ({"first.bias": 3}, "in the same folder"),
        ({}, "no weight_map"),
        ([WEIGHTS], "no weight_map"),
    ],
)
def test_bad_index(folder: Path, weight_map: Any, reason: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=reason):
        load_module(Net, folder)


def test_tensor_in_two_shards(folder: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"first.bias": torch.zeros(5)}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"another shard holds too: first\.bias"):
        load_module(Net, folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"width": 0}', '{"width": "wide"}', '{"depth": 1}', "[" * 100_000, "\xff", '{"width": 1e400}'],
    ids=lambda text: text[:12] or "empty",
)
def test_bad_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_module(Net, folder)


def test_missing_and_oversized_config(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match="larger than 32 MiB"):
        read_json(folder / "config.json")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_module(Net, folder)


def test_load_weights_by_another_name(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    net = Net(Config())
    load_weights(net, folder, name="model", dtype=torch.float64)
    assert net.first.bias.dtype == torch.float64
