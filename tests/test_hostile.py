"""Bad input and broken checkpoints: one clear sentence, and nothing half done."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_wan
import torch
from safetensors.torch import load_file, save_file

import pysora
from pysora.checkpoint import CheckpointError
from pysora.memory import parse_memory
from pysora.pipeline import Pipeline
from pysora.request import parse_size

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.saved("wan2.1", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def pipeline(whole: Path) -> Pipeline:
    return pysora.load(whole)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


SMALL: dict[str, Any] = {"prompt": "a cat", "size": (16, 16), "frames": 1, "steps": 1}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompt": ""}, ValueError, "the prompt is empty"),
    ({"prompt": " \n"}, ValueError, "the prompt is empty"),
    ({"prompt": []}, ValueError, "the prompt is empty"),
    ({"prompt": ["a", ""]}, ValueError, "the prompt is empty"),
    ({"prompt": None}, TypeError, "prompt must be text or a list of texts, got None"),
    ({"prompt": 7}, TypeError, "prompt must be text"),
    ({"size": (0, 16)}, ValueError, "width must lie between 1 and 1048576, got 0"),
    ({"size": (16, -16)}, ValueError, "height must lie between 1 and 1048576, got -16"),
    ({"size": "-1x16"}, ValueError, "width must lie between"),
    ({"size": "big"}, ValueError, "size must look like 128x96"),
    ({"size": "128"}, ValueError, "size must look like 128x96"),
    ({"size": 128}, TypeError, "size must be"),
    ({"size": (16.5, 16)}, TypeError, "width must be a whole number, got 16.5"),
    ({"size": (10**12, 16)}, ValueError, "width must lie between"),
    ({"size": (100_000, 100_000), "frames": 81}, ValueError, r"would need about \d+(\.\d)? TiB of memory"),
    ({"frames": 100_000, "size": (1024, 1024)}, ValueError, r"would need about \d+ GiB of memory"),
    ({"frames": 0}, ValueError, "frames must lie between 1"),
    ({"frames": True}, TypeError, "frames must be a whole number"),
    ({"fps": 0}, ValueError, "fps must lie between 0 and 1000"),
    ({"fps": math.nan}, ValueError, "fps must lie between"),
    ({"steps": 0}, ValueError, "steps must lie between 1 and 1000, got 0"),
    ({"steps": 1001}, ValueError, "steps must lie between 1 and 1000"),
    ({"guidance": -1}, ValueError, "guidance must lie between 0 and 1000"),
    ({"guidance": "high"}, TypeError, "guidance must be a number"),
    ({"shift": math.inf}, ValueError, "shift must lie between"),
    ({"sampler": "ddim"}, ValueError, "sampler must be one of euler, unipc, dpm\\+\\+, got 'ddim'"),
    ({"preset": "slow"}, ValueError, "preset must be one of exact, fast, got 'slow'"),
    ({"preset": ["fast"]}, ValueError, "preset must be one of"),
    ({"max_error": -0.1}, ValueError, "max_error must lie between 0 and 1, got -0.1"),
    ({"max_error": 2}, ValueError, "max_error must lie between 0 and 1"),
    ({"max_error": math.nan}, ValueError, "max_error must lie between"),
    ({"max_error": "low"}, TypeError, "max_error must be a number, got 'low'"),
    ({"guidance_interval": 0.5}, TypeError, r"guidance_interval must be \(lowest, highest\) noise level, got 0.5"),
    ({"guidance_interval": (0.5,)}, TypeError, "guidance_interval must be"),
    ({"guidance_interval": "01"}, TypeError, "guidance_interval must be"),
    ({"guidance_interval": (0.8, 0.2)}, ValueError, r"guidance_interval must be .*, got \(0.8, 0.2\)"),
    ({"guidance_interval": (0, 1.5)}, ValueError, "guidance_interval must lie between 0 and 1, got 1.5"),
    ({"guidance_interval": (0, 0.5)}, ValueError, "guidance_interval must hold one of the 1 steps' noise levels"),
    ({"step": 4}, TypeError, r"generate\(\) has no argument step"),
    ({"seed": -1}, ValueError, "seed must lie between 0 and 4294967295, got -1"),
    ({"seed": 1.5}, TypeError, "seed must be a whole number"),
    ({"n": 0}, ValueError, "n must lie between 1"),
    ({"negative_prompt": ["a", "b"]}, ValueError, "negative_prompt must be one text or one for each of 1 prompts"),
    ({"memory": "1KB"}, ValueError, r"needs? about .* more than the 1000 bytes that memory allows"),
    ({"memory": "lots"}, ValueError, "memory must be bytes or text such as '4GB'"),
    ({"memory": 0}, ValueError, "memory must be at least one byte"),
    ({"latents": torch.zeros(1, 4, 1, 3, 2)}, ValueError, r"latents must be \[1, 4, 1, 2, 2\] for this size"),
    ({"latents": torch.full((4, 1, 2, 2), math.nan)}, ArithmeticError, "the latents passed in are not finite"),
    ({"prompt_embeds": torch.zeros(3, 16)}, ValueError, "give a prompt or prompt_embeds, not both"),
    ({"prompt": None, "prompt_embeds": torch.zeros(16)}, TypeError, "prompt_embeds must be"),
    ({"prompt": None, "prompt_embeds": torch.ones(3, 7)}, ValueError, "prompt_embeds must be"),
    ({"prompt": None, "prompt_embeds": torch.ones(99, 16)}, ValueError, "prompt_embeds must be"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD, ids=[str(next(iter(bad[0].items())))[:40] for bad in BAD])
def test_bad_arguments(pipeline: Pipeline, change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        pipeline.generate(**{**SMALL, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int8"}, "dtype must be one of fp32, bf16, fp16, got 'int8'"),
        ({"dtype": torch.int32}, "dtype must be one of"),
        ({"device": "tpu9"}, "device must be a name such as 'cpu' or 'cuda', got 'tpu9'"),
    ],
)
def test_bad_load_options(whole: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pysora.load(whole, **options)


def test_options_of_a_loaded_model(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"give them to pysora\.load"):
        pysora.generate("a", model=pipeline, dtype="bf16")


@pytest.mark.parametrize(
    ("text", "size"), [("128x96", (128, 96)), (" 8 X 9 ", (8, 9)), ("3×4", (3, 4)), ((5, 6), (5, 6))]
)
def test_sizes(text: Any, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("1.5 GiB", 3 << 29), ("512mib", 512 << 20), (7, 7), ("12", 12)]
)
def test_amounts_of_memory(text: Any, size: int) -> None:
    assert parse_memory(text) == size


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def drop_and_rename(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["extra.weight"] = tensors.pop("proj_out.bias")
    tensors["proj_out.weight"] = tensors["proj_out.weight"][:, :-1].contiguous()
    save_file(tensors, folder / WEIGHTS)


def huge_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def overlapping(folder: Path) -> None:
    header = json.dumps({"proj_out.bias": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def only_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "transformer" / "diffusion_pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a folder": (lambda f: shutil.rmtree(f), "is not a checkpoint folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json: cannot be read"),
    "not json": (lambda f: (f / "model_index.json").write_text("{"), "not valid JSON"),
    "deep json": (lambda f: (f / "model_index.json").write_text("[" * 200_000), "not valid JSON"),
    "another pipeline": (
        lambda f: rewrite(f / "model_index.json", _class_name="FluxPipeline"),
        "_class_name must be 'WanPipeline', got 'FluxPipeline'",
    ),
    "two transformers": (
        lambda f: rewrite(f / "model_index.json", boundary_ratio=0.9),
        "two transformers .* not supported",
    ),
    "expand_timesteps": (lambda f: rewrite(f / "model_index.json", expand_timesteps="yes"), "must be true or false"),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), "config.json: cannot be read"),
    "truncated": (truncate, "not a whole safetensors file"),
    "huge header": (huge_header, "not a whole safetensors file"),
    "lying header": (overlapping, "not a whole safetensors file"),
    "empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "not a whole safetensors file"),
    "only pickles": (only_pickle, "only pickles"),
    "wrong tensors": (
        drop_and_rename,
        r"missing \(1\): proj_out.bias; unknown \(1\): extra.weight; wrong shape \(1\): proj_out.weight",
    ),
    "huge config": (lambda f: rewrite(f / "transformer/config.json", num_layers=10**9), "num_layers must be"),
    "image model": (lambda f: rewrite(f / "transformer/config.json", image_dim=1280), "image-conditioned"),
    "channels": (lambda f: rewrite(f / "transformer/config.json", in_channels=36), "wrong shape"),
    "scheduler": (
        lambda f: rewrite(f / "scheduler/scheduler_config.json", thresholding=True),
        "thresholding must be False, got True",
    ),
    "defaults": (lambda f: (f / "generation_config.json").write_text('{"steps": 0}'), "steps must lie between"),
    "unknown default": (lambda f: (f / "generation_config.json").write_text('{"colour": 1}'), "unknown keys: colour"),
}


@pytest.mark.parametrize(("breaking", "words"), BROKEN.values(), ids=list(BROKEN))
def test_broken_checkpoints(copy: Path, breaking: Callable[[Path], object], words: str) -> None:
    breaking(copy)
    with pytest.raises(CheckpointError, match=words):
        pysora.load(copy)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer/tokenizer.json", "{}", "not a tokenizer"),
        ("text_encoder/config.json", '{"model_type": "bert"}', "model_type must be 'umt5', got 'bert'"),
        ("tokenizer/tokenizer_config.json", '{"model_max_length": "many"}', "model_max_length must be a number"),
    ],
)
def test_broken_text_encoders(copy: Path, name: str, content: str, words: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        pysora.load(copy).generate(**SMALL)


def test_nan_weights_name_the_step(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    tensors["blocks.0.ffn.net.2.bias"][0] = math.nan
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(pysora.NonFiniteError, match=r"step 1 of 3: the latents are not finite .* float32"):
        pysora.load(copy).generate(**{**SMALL, "steps": 3})
