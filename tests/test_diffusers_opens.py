"""The other way round: diffusers' WanPipeline opens what pysora saves, and makes the same video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_wan
import torch
from diffusers import WanPipeline

import pysora
from pysora.loading import embedded_path
from pysora.sampling import SamplerSettings

FOLDERS = [*tiny_wan.FAMILIES, "clean", "embedded"]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "embedded":
        return embedded_path()
    clean = request.param == "clean"  # a transformer that predicts clean latents
    pipeline = pysora.load(tiny_wan.saved("wan2.2" if clean else request.param, tmp_path))
    if clean:
        pipeline.scheduler = SamplerSettings("unipc", 3.0, "clean")
    pipeline.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_diffusers_makes_the_same_video(folder: Path) -> None:
    pipeline = pysora.load(folder, dtype="fp32")
    reference = WanPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    reference.set_progress_bar_config(disable=True)
    width, height = 2 * pipeline.grid.multiple[0], pipeline.grid.multiple[1]
    factor = pipeline.vae.spatial_factor
    start = torch.randn(1, pipeline.vae.config.z_dim, 2, height // factor, width // factor)
    prompt = "a cat sits on a windowsill watching the sunset"
    video = pipeline.generate(prompt, size=(width, height), frames=5, steps=4, guidance=3.0, latents=start)
    frames = reference(
        prompt,
        width=width,
        height=height,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=start,
        max_sequence_length=reference.tokenizer.model_max_length,
    ).frames[0]
    assert isinstance(video, pysora.Video)
    assert video.latents is not None
    with torch.no_grad():
        ours = pipeline.vae.decode(pipeline.vae.denormalize(video.latents[None]))[0].permute(1, 2, 3, 0) / 2 + 0.5
    assert frames.std() > 0.02
    assert np.abs(ours.numpy() - frames).max() < 1e-3
    # A rounded pixel may fall to either side: half a level, and the tolerance above.
    assert np.abs(video.frames - 255 * frames).max() <= 0.5 + 0.255
