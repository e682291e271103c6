"""The model that comes with the package: its size and record, and that it draws what it is asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pysora
from pysora.loading import embedded, embedded_path
from pysora.training.autoencoder import psnr
from pysora.training.clips import ClipPool
from pysora.worlds import SETTINGS, oracle
from pysora.worlds.evaluate import held_out_prompts, score

PROMPTS = {
    "grass": "a red ball rests on the grass",
    "snow": "a dog runs in the snow",
    "beach": "a blue car stands on the beach",
    "city": "a yellow star in the city at night",
    "windowsill": "一只猫坐在窗台上看日落",
    "room": "a green cube in a room",
}


def test_at_most_30_megabytes_with_a_record() -> None:
    files = [path for path in embedded_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30_000_000
    record = json.loads((embedded_path() / "training.json").read_text())
    assert all(record[stage]["steps"] > 0 for stage in ("vae", "text", "dit"))


def test_every_setting_is_drawn_when_it_is_named() -> None:
    assert set(PROMPTS) == set(SETTINGS)
    videos = pysora.generate(list(PROMPTS.values()), seed=0, steps=12)
    assert isinstance(videos, list)
    assert [oracle.judge(video.frames).setting for video in videos] == list(PROMPTS)


@pytest.mark.parametrize(("size", "frames"), [("128x128", 1), ("160x96", 5), ("100x76", 3)])
def test_other_sizes_and_lengths(size: str, frames: int) -> None:
    width, height = map(int, size.split("x"))
    video = pysora.generate(PROMPTS["snow"], seed=0, size=size, frames=frames, steps=4)
    assert isinstance(video, pysora.Video)
    assert video.frames.shape == (frames, height, width, 3)


def test_the_seed_decides_the_video() -> None:
    first, again, other = (
        pysora.generate(PROMPTS["snow"], seed=seed, size="64x64", frames=5, steps=3) for seed in (1, 1, 2)
    )
    assert isinstance(first, pysora.Video)
    assert isinstance(again, pysora.Video)
    assert isinstance(other, pysora.Video)
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)


def test_reconstructions_reach_30_db() -> None:
    pool = ClipPool((128, 128, 17), 4, np.random.default_rng(10**6))
    assert psnr(embedded().vae, pool.batch(4)) >= 30


def test_held_out_prompts_reach_the_bar() -> None:
    """On 16 prompts as `pysora eval` makes them (docs/training.md has those of 200). 95 % of the colours are asked:
    one may be wrong here."""
    prompts = held_out_prompts(16)
    videos: list[pysora.Video] = []
    for start in (0, 8):
        made = pysora.generate([text for text, _ in prompts[start : start + 8]], seed=start)
        assert isinstance(made, list)
        videos += made
    accuracy = score([oracle.judge(video.frames) for video in videos], [asked for _, asked in prompts])
    assert accuracy.by_field["colour"] >= 15 / 16
    assert accuracy.by_field["setting"] >= 0.97
    assert accuracy.by_field["cls"] >= 0.8
    assert accuracy.by_field["motion"] >= 0.85
    assert accuracy.all_four >= 0.65
