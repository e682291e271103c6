"""Checkpoints: the diffusers folder layout, safetensors only.

A module is built on the meta device and its parameters become views of the memory-mapped files: nothing is read before
it is used, nothing is held twice, and a tensor is copied only where its dtype or device has to change. Nothing is ever
unpickled. Files are replaced in one step when saving, so that neither a failed save nor a reader loses the old ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WEIGHTS = "diffusion_pytorch_model"
JSON_LIMIT = 32 << 20
SHARD_BYTES = 5 << 30
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Module = TypeVar("Module", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and everything that is wrong with it."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. CheckpointError where the file is missing, larger than 32 MiB or not an object."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise CheckpointError(f"{path}: larger than {JSON_LIMIT >> 20} MiB, so it is no configuration")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, holds a {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, replacing an existing file in one step."""
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class _Unfilled(TorchFunctionMode):
    """Leaves the parameters of modules that are made in it as they are: on the meta device torch only acts as if it
    filled them, which takes a third of the time of opening a checkpoint."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return function(*args, **kwargs)


def load_module(
    cls: type[Module],
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Module:
    """Load one component: `folder/config.json` and `folder/diffusion_pytorch_model*.safetensors`.

    cls: a module class whose constructor takes one `cls.config_class`, which has `from_dict`; `cls.keep_fp32`, if
        there, names the submodules and parameters that stay fp32 in a half-precision model.
    dtype: None keeps what is stored.
    Returns the module in evaluation mode. Raises CheckpointError.
    """
    folder = Path(folder)
    values = read_json(folder / "config.json")
    try:
        # The classes that have a config share no base that could declare it.
        config = cls.config_class.from_dict(values)  # type: ignore[attr-defined]
        with torch.device("meta"), _Unfilled():
            module = cls(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    load_weights(module, folder, dtype=dtype, device=device, keep_fp32=getattr(cls, "keep_fp32", ()))
    return module.eval()


def load_weights(
    module: nn.Module,
    folder: str | Path,
    *,
    name: str = WEIGHTS,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    keep_fp32: Iterable[str] = (),
) -> None:
    """Assign every parameter and persistent buffer of a module from `folder/name*.safetensors`.

    Tensors that a module shares under several names need to be stored once. Raises one CheckpointError that lists the
    missing, unknown and misshapen tensors.
    """
    folder, kept = Path(folder), frozenset(keep_fp32)
    expected = module.state_dict(keep_vars=True)
    stored = _read_tensors(weight_files(folder, name))
    _fill_shared(expected, stored)
    _check(folder, expected, stored)
    placed: dict[int, Tensor] = {}
    for key, tensor in stored.items():
        # One Parameter for all names of a shared tensor: it stays shared, and is cast once.
        if id(tensor) not in placed:
            value = tensor.to(device=device, dtype=_target_dtype(key, tensor, dtype, kept))
            placed[id(tensor)] = nn.Parameter(value) if isinstance(expected[key], nn.Parameter) else value
    # As `load_state_dict(assign=True)`, which looks at every name once more in every module.
    owners = dict(module.named_modules())
    for key, tensor in stored.items():
        owner, _, name_there = key.rpartition(".")
        value = placed[id(tensor)]
        if isinstance(value, nn.Parameter):
            owners[owner].register_parameter(name_there, value)
        else:
            owners[owner].register_buffer(name_there, value)
    left = [key for key, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
    assert not left, f"made on the meta device but not stored: {left}"


def save_module(module: nn.Module, folder: str | Path, *, name: str = WEIGHTS, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `config.json` (from `module.config.to_dict()`) and the weights, in shards where they exceed `shard_bytes`.

    Shards of an earlier save that this one does not need are removed at the end. Raises OSError where the folder
    cannot be written; existing files are then still whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    shards = _split(tensors, shard_bytes)
    total = len(shards)
    files = [f"{name}.safetensors"] if total == 1 else [_shard_name(name, i, total) for i in range(total)]
    with ExitStack() as stack:
        for file, shard in zip(files, shards, strict=True):
            save_file(shard, stack.enter_context(_replacing(folder / file)), metadata={"format": "pt"})
    index = folder / f"{name}.safetensors.index.json"
    if total > 1:
        weight_map = {key: file for file, shard in zip(files, shards, strict=True) for key in shard}
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_json(index, {"metadata": {"total_size": size}, "weight_map": weight_map})
    else:
        index.unlink(missing_ok=True)
    # As in load_module: nn.Module declares no config.
    write_json(folder / "config.json", module.config.to_dict())  # type: ignore[union-attr,operator]
    for old in [folder / f"{name}.safetensors", *folder.glob(f"{name}-?????-of-?????.safetensors")]:
        if old.name not in files:
            old.unlink(missing_ok=True)


def weight_files(folder: Path, name: str = WEIGHTS) -> list[Path]:
    """The safetensors files of a component: those of the index where there is one, or the single file.

    Raises CheckpointError: nothing there, only pickles there, shards missing, names that leave the folder.
    """
    index = folder / f"{name}.safetensors.index.json"
    single = folder / f"{name}.safetensors"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: has no weight_map")
        names = set(weight_map.values()) if all(isinstance(v, str) for v in weight_map.values()) else {""}
        if any(Path(file).name != file or not file.endswith(".safetensors") for file in names):
            raise CheckpointError(f"{index}: every shard must be the name of a .safetensors file in the same folder")
        files = [folder / file for file in sorted(names)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{folder}: {len(missing)} of {len(files)} shards are missing: {_listed(missing)}")
        return files
    if single.is_file():
        return [single]
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder}: holds no {single.name}, only pickles ({_listed(pickles)}), which can run code: not opened"
        )
    raise CheckpointError(f"{folder}: holds no {single.name}")


def _read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """Memory-mapped tensors of all files. CheckpointError where a file is broken or a tensor is stored twice."""
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                # The open file has keys() but cannot be iterated.
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise CheckpointError(f"{path}: tensors that another shard holds too: {_listed(twice)}")
        tensors.update(found)
    return tensors


def _fill_shared(expected: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Give every name of a shared tensor the one stored copy."""
    names: dict[int, list[str]] = {}
    for key, tensor in expected.items():
        names.setdefault(id(tensor), []).append(key)
    for group in names.values():
        source = next((stored[key] for key in group if key in stored), None)
        if source is not None:
            stored.update({key: source for key in group if key not in stored})


def _check(folder: Path, expected: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """One CheckpointError that lists what is missing, unknown, misshapen or not floating point."""
    shapes, kinds = [], []
    for key in sorted(expected.keys() & stored.keys()):
        want, have = expected[key], stored[key]
        if want.shape != have.shape:
            shapes.append(f"{key} is {list(have.shape)}, needs {list(want.shape)}")
        elif want.is_floating_point() and have.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.half):
            kinds.append(f"{key} is {str(have.dtype).removeprefix('torch.')}")
    problems = {
        "missing": sorted(expected.keys() - stored.keys()),
        "unknown": sorted(stored.keys() - expected.keys()),
        "wrong shape": shapes,
        "unsupported type": kinds,
    }
    text = "; ".join(f"{kind} ({len(items)}): {_listed(items)}" for kind, items in problems.items() if items)
    if text:
        raise CheckpointError(f"{folder}: the weights do not fit the configuration: {text}")


def _target_dtype(key: str, tensor: Tensor, dtype: torch.dtype | None, kept: frozenset[str]) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    target = dtype or tensor.dtype
    half = target in (torch.bfloat16, torch.float16)
    return torch.float32 if half and not kept.isdisjoint(key.split(".")) else target


def _split(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Consecutive groups of tensors of at most `limit` bytes each (a larger tensor is a group of its own)."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards


def _shard_name(name: str, i: int, total: int) -> str:
    return f"{name}-{i + 1:05d}-of-{total:05d}.safetensors"


def _listed(items: list[str], limit: int = 12) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path to write a new version of `target` to; it takes its place at the end, or is removed on error."""
    path = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield path
        os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)
