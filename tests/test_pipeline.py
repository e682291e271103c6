"""From a prompt to frames, against diffusers' WanPipeline with tiny random models of both families."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_wan
import torch
from allocations import PeakBytes
from torch import Tensor

import pysora
from pysora import footprint
from pysora.generation import generate
from pysora.memory import parse_memory
from pysora.models.dit import DiT, DiTConfig
from pysora.models.vae_plan import TilePlan
from pysora.models.vae_tiles import Piece
from pysora.pipeline import Cancelled, NonFiniteError, Pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=tiny_wan.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.saved(family, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def pipeline(folder: Path) -> Pipeline:
    return pysora.load(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what does not depend on the family."""
    return tiny_wan.saved("wan2.1", tmp_path_factory.mktemp("checkpoint"))


def one(made: pysora.Video | list[pysora.Video]) -> pysora.Video:
    assert isinstance(made, pysora.Video)
    return made


def many(made: pysora.Video | list[pysora.Video]) -> list[pysora.Video]:
    assert isinstance(made, list)
    return made


def exact(pipeline: Pipeline, video: pysora.Video) -> np.ndarray:
    """The decoded frames in [0, 1] before they were rounded, [F, H, W, 3]."""
    assert video.latents is not None
    with torch.no_grad():
        frames = pipeline.vae.decode(pipeline.vae.denormalize(video.latents[None]))[0]
    return (frames.permute(1, 2, 3, 0) / 2 + 0.5).numpy()


def noise(pipeline: Pipeline, B: int, size: tuple[int, int], frames: int) -> Tensor:
    factor = pipeline.vae.spatial_factor
    return torch.randn(B, tiny_wan.Z, (frames - 1) // 4 + 1, size[1] // factor, size[0] // factor)


@pytest.mark.parametrize(
    ("size", "frames", "steps", "guidance"),
    [((96, 32), 5, 7, 4.0), ((32, 64), 9, 3, 1.0), ((32, 32), 1, 1, 6.5), ((64, 96), 13, 2, 2.0)],
    ids=["wide", "tall-unguided", "image-one-step", "longer"],
)
def test_frames_are_those_of_diffusers(
    folder: Path, family: str, size: tuple[int, int], frames: int, steps: int, guidance: float
) -> None:
    pipeline = pysora.load(folder)
    start = noise(pipeline, 1, size, frames)
    settings: dict[str, Any] = {"negative_prompt": "blurry &amp; dark", "latents": start}
    video = one(
        pipeline.generate(
            "a  cat on a\nwindowsill", size=size, frames=frames, steps=steps, guidance=guidance, **settings
        )
    )
    reference = tiny_wan.oracle(family)(
        "a  cat on a\nwindowsill",
        width=size[0],
        height=size[1],
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=tiny_wan.TEXT_LENGTH,
        **settings,
    ).frames[0]
    assert reference.std() > 0.05
    assert np.abs(exact(pipeline, video) - reference).max() < 1e-3
    assert np.abs(video.frames - reference * 255).max() <= 0.5 + 255e-3


def test_a_batch_is_that_of_diffusers(folder: Path, family: str) -> None:
    pipeline = pysora.load(folder)
    prompts = ["a dog runs", "一只猫坐在窗台上看日落"]
    start = noise(pipeline, 2, (64, 32), 5)
    videos = many(pipeline.generate(prompts, latents=start, size="64x32", frames=5, steps=4, guidance=3.0))
    reference = (
        tiny_wan.oracle(family)(
            prompts,
            latents=start,
            width=64,
            height=32,
            num_frames=5,
            num_inference_steps=4,
            guidance_scale=3.0,
            max_sequence_length=tiny_wan.TEXT_LENGTH,
        )
    ).frames
    for video, frames in zip(videos, reference, strict=True):
        assert np.abs(exact(pipeline, video) - frames).max() < 1e-3


def test_every_sampler_makes_a_video(small: Path) -> None:
    made = [pysora.load(small).generate("a", size="16x16", frames=1, steps=3, seed=1, sampler=s) for s in SAMPLERS]
    assert len({one(video).frames.tobytes() for video in made}) == len(SAMPLERS)


SAMPLERS = ("euler", "unipc", "dpm++")


def test_any_size_is_cropped_to_the_middle(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pysora"):
        video = one(pipeline.generate("a", size=(45, 31), frames=7, steps=1, seed=3))
    assert (video.size, len(video)) == ((45, 31), 7)
    width, height = pipeline.grid.snap((45, 31), 7)[0]
    whole = one(pipeline.generate("a", size=(width, height), frames=9, steps=1, seed=3)).frames
    top, left = (height - 31) // 2, (width - 45) // 2
    assert np.array_equal(video.frames, whole[:7, top : top + 31, left : left + 45])
    notes = [
        f"size 45x31 was made at {width}x{height} and cropped to its middle",
        "7 frames were made as 9 and cut at the end",
    ]
    assert video.meta["notes"] == notes
    assert [record.message for record in caplog.records] == notes


def test_the_seed_decides(small: Path) -> None:
    def make(**options: Any) -> bytes:
        return one(pysora.load(small).generate("a", size="32x16", frames=5, steps=2, **options)).frames.tobytes()

    assert make(seed=5) == make(seed=5)
    assert make(seed=5) != make(seed=6)
    drawn = one(pysora.load(small).generate("a", size="32x16", frames=5, steps=2))
    assert make(seed=drawn.meta["seed"]) == drawn.frames.tobytes()


def test_copies_and_batches_do_not_change_a_video(small: Path) -> None:
    pipeline = pysora.load(small)
    options: dict[str, Any] = {"size": "32x16", "frames": 5, "steps": 3, "seed": 9}
    videos = many(pipeline.generate(["a cat", "a longer prompt"], n=2, **options))
    assert [v.meta["prompt"] for v in videos] == ["a cat", "a cat", "a longer prompt", "a longer prompt"]
    alone = one(pipeline.generate("a longer prompt", **options))
    assert alone.latents is not None and videos[2].latents is not None and videos[3].latents is not None
    # Another batch is another order of the same sums.
    assert (videos[2].latents - alone.latents).abs().max() < 1e-4
    assert (videos[3].latents - alone.latents).abs().max() > 0.1


def test_embeddings_stand_for_prompts(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"size": "32x32", "frames": 5, "steps": 2, "seed": 2, "guidance": 3.0}
    video = one(pipeline.generate("a cat", negative_prompt="dark", **options))
    rows, lengths = pipeline.text.encode(["a cat", "dark"])
    padded = torch.nn.functional.pad(rows, (0, 0, 0, tiny_wan.TEXT_LENGTH - rows.shape[1]))
    assert lengths[1] < lengths[0]
    paired = many(pipeline.generate(prompt_embeds=(padded[:1], rows[1, : lengths[1]]), n=2, **options))[0]
    single = one(pipeline.generate(prompt_embeds=rows[0], negative_prompt="dark", **options))
    assert np.array_equal(single.frames, video.frames)
    assert paired.latents is not None and video.latents is not None
    assert (paired.latents - video.latents).abs().max() < 1e-4


def test_each_step_is_told_and_can_cancel(small: Path) -> None:
    pipeline = pysora.load(small)
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def told(step: int, steps: int, latents: Tensor) -> bool | None:
        seen.append((step, steps, tuple(latents.shape)))
        return False if len(seen) == 7 else None

    options: dict[str, Any] = {"size": "16x16", "frames": 5, "steps": 4, "on_step": told}
    pipeline.generate("a", **options)
    shape = (1, tiny_wan.Z, 2, 2, 2)
    assert seen == [(i, 4, shape) for i in (1, 2, 3, 4)]
    with pytest.raises(Cancelled, match="cancelled after step 3 of 4") as caught:
        pipeline.generate("a", **options)
    assert caught.value.step == 3
    assert caught.value.latents.shape == shape


@pytest.mark.parametrize(("dtype", "name"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_nan_names_the_step_and_the_dtype(small: Path, dtype: str, name: str) -> None:
    pipeline = pysora.load(small, dtype=dtype)

    def poison(step: int, steps: int, latents: Tensor) -> None:
        if step == 2:
            pipeline.dit.blocks[1].attn1.to_v.weight.data[3, 5] = math.nan

    with pytest.raises(NonFiniteError, match=rf"step 3 of 4: the latents are not finite .* {name}"):
        pipeline.generate("a", size="16x16", frames=1, steps=4, on_step=poison)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("vae.decoder.conv_out.bias", "the decoded frames are not finite"),
        ("text.encoder.model.encoder.final_layer_norm.weight", "the text embeddings are not finite"),
    ],
)
def test_nan_in_the_other_models(small: Path, part: str, words: str) -> None:
    pipeline = pysora.load(small)
    weight: Any = pipeline
    for name in part.split("."):
        weight = getattr(weight, name)
    weight.data[0] = math.nan
    with pytest.raises(NonFiniteError, match=words):
        pipeline.generate("a", size="16x16", frames=1, steps=1)


def test_what_is_saved_is_what_is_loaded(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / "copy")
    options: dict[str, Any] = {"size": "32x32", "frames": 5, "steps": 2, "seed": 4}
    again = pysora.load(tmp_path / "copy")
    assert again.expand_timesteps == pipeline.expand_timesteps
    assert again.scheduler == pipeline.scheduler
    assert again.defaults == pipeline.defaults
    assert np.array_equal(
        one(again.generate("a cat", **options)).frames, one(pipeline.generate("a cat", **options)).frames
    )


def test_a_bound_of_memory_tiles_the_decoding(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pysora.load(small)
    options: dict[str, Any] = {"size": (256, 64), "frames": 9, "steps": 1, "seed": 8, "guidance": 1.0}
    free = one(pipeline.generate("a", **options)).frames
    with pytest.raises(ValueError, match="more than the 1000 bytes that memory allows") as refused:
        pipeline.generate("a", memory="1KB", **options)
    least = re.search(r"about ([\d.]+ MiB) of memory", str(refused.value))
    assert least is not None
    plans: list[TilePlan] = []
    pieces = pipeline.vae.decode_pieces

    def told(latents: Tensor, plan: TilePlan, chunk: int = 1) -> Iterator[Piece]:
        plans.append(plan)
        return pieces(latents, plan, chunk)

    monkeypatch.setattr(pipeline.vae, "decode_pieces", told)
    bound = one(pipeline.generate("a", memory=parse_memory(least[1]) * 1.01, **options)).frames
    assert len(plans[0].tiles) > 1
    assert np.abs(bound.astype(int) - free).max() <= 1


def test_the_text_encoder_goes_when_it_has_done_its_work(small: Path) -> None:
    text = pysora.load(small).text
    assert text.text_length == tiny_wan.TEXT_LENGTH
    assert not text.free()
    first, _ = text.encode(["a cat", "a dog"])
    assert not text.free(larger_than=1 << 30)
    assert text.free(larger_than=1)
    known, _ = text.encode(["a dog", "a cat"])
    assert torch.equal(known, first.flip(0))
    assert not text.free(), "known texts must not load the encoder again"
    text.encode(["a bird"])
    assert text.free()


def test_bf16_stays_near_fp32(pipeline: Pipeline, folder: Path) -> None:
    options: dict[str, Any] = {"size": "32x32", "frames": 5, "steps": 4, "seed": 1, "guidance": 2.0}
    full, half = one(pipeline.generate("a", **options)), one(pysora.load(folder, dtype="bf16").generate("a", **options))
    assert half.meta["dtype"] == "bfloat16"
    assert full.latents is not None and half.latents is not None
    assert half.latents.dtype == torch.float32
    assert 0 < (half.latents - full.latents).abs().mean() < 0.05 * full.latents.abs().mean()


def test_generate_offers_what_the_pipeline_takes() -> None:
    taken = inspect.signature(generate).parameters
    assert " ".join(taken) == (
        "prompt model size frames fps steps guidance shift negative_prompt seed n sampler dtype device memory "
        "preset max_error guidance_interval int8 latents prompt_embeds on_step"
    )
    assert all(p.kind is p.KEYWORD_ONLY for name, p in taken.items() if name != "prompt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("heads", "head", "ffn"), [(4, 64, 1024), (2, 128, 256)], ids=["wide-ffn", "narrow-ffn"])
@pytest.mark.parametrize(("grid", "rows"), [((5, 8, 8), 20), ((2, 12, 8), 64)], ids=["few-keys", "more-keys"])
def test_the_transformers_need_is_known(
    heads: int, head: int, ffn: int, grid: tuple[int, int, int], rows: int, dtype: torch.dtype
) -> None:
    config = DiTConfig(
        num_attention_heads=heads, attention_head_dim=head, text_dim=32, ffn_dim=ffn, num_layers=2, freq_dim=32
    )
    model = DiT(config).to(dtype)
    with torch.no_grad(), PeakBytes() as measured:
        context = model.encode_text(torch.zeros(1, rows - 1, 32), [rows - 1], 512)
        model(torch.zeros(1, 16, grid[0], 2 * grid[1], 2 * grid[2]), torch.zeros(1), context)
    needed = footprint.denoising(config, 1, grid, rows, dtype.itemsize)
    assert measured.peak <= needed <= 2.5 * measured.peak, needed / measured.peak
