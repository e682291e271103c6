"""The bf16 transformer: its error against our own float64 is at most 1.1 times that of diffusers' bf16 model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pysora.checkpoint import load_module
from pysora.models.dit import DiT

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "wan2.1": {"in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 32},
    "wan2.2-ti2v": {"in_channels": 12, "out_channels": 12, "num_attention_heads": 3, "attention_head_dim": 40},
}
COMMON = {"text_dim": 48, "freq_dim": 64, "ffn_dim": 256, "num_layers": 4}
GRID = (3, 10, 14)
LENGTHS = [7, 12]
SEEDS = range(5)


def draw(family: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(latents, timestep, text rows padded to 64 with zeros), all exact in bf16."""
    torch.manual_seed(seed)
    latents = torch.randn(2, SHAPES[family]["in_channels"], *GRID).bfloat16()
    text = torch.randn(2, 64, COMMON["text_dim"]).bfloat16()
    for b, n in enumerate(LENGTHS):
        text[b, n:] = 0
    timestep = torch.randint(1, 1000, (2,))
    if family == "wan2.2-ti2v":
        frames = timestep[:, None].repeat(1, GRID[0])
        frames[:, 0] = 0
        timestep = frames.repeat_interleave(GRID[1] * GRID[2] // 4, dim=1)
    return latents, timestep, text


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.parametrize("family", SHAPES)
def test_bf16_error(family: str, tmp_path: Path) -> None:
    ours_squared = theirs_squared = 0.0
    for seed in SEEDS:
        torch.manual_seed(100 + seed)
        WanTransformer3DModel(**COMMON, **SHAPES[family]).save_pretrained(tmp_path)
        theirs = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        ours = load_module(DiT, tmp_path, torch.bfloat16)
        exact = load_module(DiT, tmp_path, torch.bfloat16).double()
        latents, timestep, text = draw(family, seed)
        with torch.no_grad():
            want = exact(latents.double(), timestep, exact.encode_text(text.double(), LENGTHS, 64))
            got = ours(latents, timestep, ours.encode_text(text, LENGTHS, 64))
            their = theirs(latents, timestep, text, return_dict=False)[0]
        assert got.dtype == their.dtype == torch.bfloat16
        ours_squared += error(got, want) ** 2
        theirs_squared += error(their, want) ** 2
    rms = {"ours": (ours_squared / len(SEEDS)) ** 0.5, "diffusers": (theirs_squared / len(SEEDS)) ** 0.5}
    # Guard the measure itself: bf16 has 8 bits, so neither model is exact nor wrong.
    assert 1e-3 < rms["diffusers"] < 0.1, rms
    assert rms["ours"] <= 1.1 * rms["diffusers"], rms
