"""The autoencoder within a memory budget: what plans need, which is chosen, and what the process really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from allocations import PeakBytes
from test_vae import FORMS

from pysora.memory import readable
from pysora.models.vae import VAE, VAEConfig
from pysora.models.vae_plan import ALLOWANCE

# The process's own peak of resident memory, above what is resident when the model and the input are there.
MEASURE = """
import json, sys
import torch
from pysora.models.vae import VAE, VAEConfig

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))

torch.set_num_threads(2)
config, cases = json.load(sys.stdin)
vae = VAE(VAEConfig(**config)).eval()
for call, dtype, shape, memory in cases:
    vae.to(getattr(torch, dtype))
    x = torch.rand(shape, dtype=getattr(torch, dtype))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again at what is resident now
    before = status("VmRSS")
    made = getattr(vae, call)(x, memory=memory)
    frames = sum(part.shape[2] for part in (made if call == "decode_frames" else [made]))
    print(json.dumps([status("VmHWM") - before, frames]), flush=True)
"""
NARROW = {"base_dim": 16, "dim_mult": (1, 1, 1, 1), "z_dim": 4, "num_res_blocks": 1}
NARROW |= {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_keeps_to_its_budget() -> None:
    vae = VAE(VAEConfig(**NARROW))
    latents, clip = [1, 4, 2, 24, 24], [1, 3, 5, 192, 192]
    frames = 5 * 3 * 192 * 192 * 4
    decoding, encoding = vae.decoding(latents, 1, 4), vae.encoding(clip, 1, 4)
    plans = {
        "decode": decoding.within(110 << 20, frames),
        "decode_frames": decoding.within(100 << 20, 2 * frames * 4 // 5, frames),
        "encode": encoding.within(100 << 20),
    }
    assert [plan.tiles_outside for plan in plans.values()] == [False, True, False]
    cases = [
        ("decode", "float32", latents, 110 << 20),
        ("decode_frames", "float32", latents, 100 << 20),
        ("encode", "float32", clip, 100 << 20),
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], input=json.dumps([NARROW, cases]), capture_output=True, text=True, check=True
    )
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert [made for _, made in measured] == [5, 5, 2]
    for (call, _, _, memory), (peak, _) in zip(cases, measured, strict=True):
        need = plans[call].need
        # A plan that takes far less than it says would tile for nothing; the libraries are loaded once.
        assert 0.7 * (need - ALLOWANCE) < peak < 1.1 * memory, (call, peak >> 20, need >> 20)


def test_amounts_in_words() -> None:
    assert [readable(n) for n in (7, 1536, 200 << 20)] == ["7 bytes", "1.5 KiB", "200 MiB"]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "tiles", [((1, 1), False), ((2, 3), False), ((2, 2), True)], ids=["whole", "inside", "outside"]
)
def test_needs_cover_what_is_allocated(form: dict[str, Any], tiles: tuple[tuple[int, int], bool]) -> None:
    vae = VAE(VAEConfig.from_dict({**form, "base_dim": 16, "decoder_base_dim": 16, "num_res_blocks": 1})).bfloat16()
    latents = torch.zeros(1, 4, 2, 6, 10, dtype=torch.bfloat16)
    job = vae.decoding(latents.shape, 1, 2)
    plan = job.plan(job.cuts()[-2], *tiles)
    with torch.no_grad(), PeakBytes() as measured:
        for piece in vae.decode_pieces(latents, plan):
            del piece
    assert measured.peak <= plan.need - ALLOWANCE <= 2 * measured.peak

    video = torch.zeros(1, 3, 5, 6 * vae.spatial_factor, 10 * vae.spatial_factor, dtype=torch.bfloat16)
    job = vae.encoding(video.shape, 1, 2)
    plan = job.plan(job.cuts()[0], *tiles)
    with torch.no_grad(), PeakBytes() as measured:
        vae._moments(video, 1, plan)
    assert measured.peak <= plan.need - ALLOWANCE <= 2 * measured.peak


def test_more_memory_is_never_more_work() -> None:
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    job = vae.decoding((1, 16, 9, 60, 104), 1, 2)
    frames = 33 * 480 * 832 * 3
    plans = [job.within(memory << 20, frames) for memory in (1024, 2048, 4096, 8192)]
    assert [plan.need + frames <= memory << 30 for plan, memory in zip(plans, (1, 2, 4, 8), strict=True)] == [True] * 4
    assert sorted((plan.flops for plan in plans), reverse=True) == [plan.flops for plan in plans]
    assert plans[0].flops > plans[1].flops > plans[3].flops
    # The frame caches of all tiles fit into 4 GiB, not into 2.
    assert [plan.tiles_outside for plan in plans] == [True, True, False, False]
    assert plans[3] == job.whole()


def test_too_little_memory_is_refused_before_anything_runs() -> None:
    vae = VAE(VAEConfig.from_dict(FORMS["2.1"])).to("meta")
    latents = torch.zeros(1, 4, 3, 5, 7, device="meta")
    for call in (vae.decode, vae.decode_frames):
        with pytest.raises(ValueError, match=r"memory: decoding 9 frames of 56x40 needs at least \d.* above the model"):
            call(latents, memory="20MB")
    with pytest.raises(ValueError, match=r"memory: encoding 1 frame of 56x40 needs at least \d.*, got 977 KiB"):
        vae.encode(torch.zeros(1, 3, 1, 40, 56, device="meta"), memory=1_000_000)
    needed = vae.decoding(latents.shape, 1, 4).least()
    with pytest.raises(ValueError, match="needs at least"):
        vae.decoding(latents.shape, 1, 4).within(needed - 1)
    assert vae.decoding(latents.shape, 1, 4).within(needed).need == needed


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_budget_changes_no_frame(form: dict[str, Any]) -> None:
    vae = VAE(VAEConfig.from_dict(form)).double().requires_grad_(False)
    latents = torch.randn(1, 4, 2, 3, 21, dtype=torch.float64)
    job = vae.decoding(latents.shape, 1, 8)
    video = vae.decode(latents, memory=1 << 40)
    assert torch.equal(video, vae.decode(latents))
    assert len(job.within(job.least()).tiles) > 1
    tiled = vae.decode(latents, memory=job.least(video.nbytes))
    assert float((tiled - video).abs().max()) < 1e-12
    chunks = list(vae.decode_frames(latents, memory=job.least(8 * video.nbytes // 5, video.nbytes)))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4]
    assert float((torch.cat(chunks, 2) - video).abs().max()) < 1e-12
    clip = torch.rand(1, 3, 5, *(n * vae.spatial_factor for n in (3, 21)), dtype=torch.float64)
    moments = vae.moments(clip, 1, memory=vae.encoding(clip.shape, 1, 8).least())
    for tiled, untiled in zip(moments, vae.moments(clip), strict=True):
        assert float((tiled - untiled).abs().max() / untiled.abs().max()) < 1e-12
