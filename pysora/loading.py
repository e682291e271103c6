"""Opening checkpoints: a folder in the diffusers layout becomes a pipeline."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

import torch

from pysora.checkpoint import CheckpointError, load_module, read_json
from pysora.conditioning import TextConditions
from pysora.models.dit import DiT
from pysora.models.vae import VAE
from pysora.pipeline import Pipeline
from pysora.request import Defaults
from pysora.sampling import SamplerSettings

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def load(
    path: str | Path, *, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> Pipeline:
    """Open a checkpoint folder in the diffusers layout: Wan 2.1 text-to-video, Wan 2.2 TI2V, or pysora's own.

    dtype: "fp32", "bf16", "fp16" or torch's; None is fp32 on the CPU and bf16 elsewhere. device: None is CUDA where
    there is a device, else the CPU. The text encoder is read when a prompt needs it.
    Raises CheckpointError (a ValueError) that names the file and everything that is wrong with it.
    """
    path = Path(path)
    place, kind = _device(device), _dtype(dtype)
    kind = kind or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    if not path.is_dir():
        raise CheckpointError(f"{str(path)!r} is not a checkpoint folder")
    expand = _read_index(path / "model_index.json")
    scheduler_path, defaults_path = path / "scheduler" / "scheduler_config.json", path / "generation_config.json"
    try:
        scheduler = SamplerSettings.from_dict(read_json(scheduler_path))
        defaults = Defaults.from_dict(read_json(defaults_path)) if defaults_path.exists() else Defaults()
        dit = load_module(DiT, path / "transformer", kind, place)
        vae = load_module(VAE, path / "vae", kind, place)
        text = TextConditions(path, kind, place)
        return Pipeline(dit, vae, text, scheduler, defaults, expand_timesteps=expand)
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


@functools.lru_cache(maxsize=1)
def embedded(dtype: str | torch.dtype | None = None, device: str | torch.device | None = None) -> Pipeline:
    """The model that comes with the package; the last one asked for is kept. Raises CheckpointError."""
    return load(embedded_path(), dtype=dtype, device=device)


def embedded_path() -> Path:
    """The folder of the model that comes with the package."""
    return Path(str(resources.files("pysora"))) / "assets" / "model"


def open_model(
    model: Pipeline | str | Path | None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Pipeline:
    """The pipeline that `generate` runs: `model` itself, a checkpoint folder, or the embedded model for None."""
    if isinstance(model, Pipeline):
        if dtype is not None or device is not None:
            raise ValueError("dtype and device are chosen when a model is loaded: give them to pysora.load")
        return model
    return embedded(dtype, device) if model is None else load(model, dtype=dtype, device=device)


def _read_index(path: Path) -> bool:
    """Check a model_index.json and return its expand_timesteps. Raises CheckpointError."""
    index = read_json(path)
    if index.get("_class_name") != "WanPipeline":
        raise CheckpointError(f"{path}: _class_name must be 'WanPipeline', got {index.get('_class_name')!r}")
    if index.get("boundary_ratio") is not None or any(index.get("transformer_2") or ()):
        raise CheckpointError(f"{path}: checkpoints with two transformers (boundary_ratio) are not supported")
    expand = index.get("expand_timesteps", False)
    if not isinstance(expand, bool):
        raise CheckpointError(f"{path}: expand_timesteps must be true or false, got {expand!r}")
    return expand


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    made = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and made not in DTYPES.values():
        raise ValueError(f"dtype must be one of fp32, bf16, fp16, got {dtype!r}")
    return made


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        made = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be a name such as 'cpu' or 'cuda', got {device!r}") from error
    if made.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, and torch finds no CUDA device")
    return made
