"""Stage "vae": the embedded autoencoder, 16x16x4, in the form of the Wan 2.2 VAE.

Patches of 4x4 pixels and few, wide levels: at equal arithmetic the products are larger, so that two cores do more of
them a second, and the weights are fewer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pysora.checkpoint import load_module, save_module
from pysora.models.vae import VAE, VAEConfig
from pysora.models.vae_blocks import Stream
from pysora.training import workers
from pysora.training.clips import ClipPool, Size
from pysora.training.components import Components
from pysora.training.loop import Run, optimizers
from pysora.training.precision import autocast

CONFIG = VAEConfig(
    base_dim=32,
    decoder_base_dim=40,
    z_dim=64,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temperal_downsample=(True, True),
    is_residual=True,
    in_channels=48,
    out_channels=48,
    patch_size=4,
    scale_factor_spatial=16,
    latents_mean=(0.0,) * 64,
    latents_std=(1.0,) * 64,
)
SIZES: tuple[tuple[Size, int], ...] = (
    ((128, 128, 17), 160),
    ((160, 96, 17), 60),
    ((96, 160, 17), 60),
    ((128, 128, 33), 40),
)
"""Sizes of the clips, and how many of each are kept; the last one for the long windows."""
ALIGNMENT = 0.2
"""Weight of the squared distance between the latents and the linear components of the clip."""
LARGEST_NOISE = 0.3
"""Deviation of the noise that the decoder learns to live with, at most: what a transformer leaves wrong is like it.
(Zheng et al. 2025, arXiv:2510.11690, section 4.)"""
VARIANCE = math.log(0.1**2)
"""The log-variance that the encoder gives everywhere; a checkpoint of this family must give one."""
SUBJECT_WEIGHT = 3.0
"""How much the pixels around the subject count; without it the still background, easily learnt, leads the loss."""


def losses(vae: VAE, video: Tensor, weight: Tensor, aligned: Tensor | None) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction (absolute, squared, and of the differences along x, y and t, which are the edges) from noisy
    latents, and the latents' distance from the linear components.

    video: `[B, 3, F, H, W]` in [-1, 1]; weight: `[B, 1, F, H, W]`, how much each pixel counts; aligned:
    `[B, z, T, h, w]`, the components, None where the encoder is not trained.
    """
    # Mostly little noise: half of the clips have less than a quarter of the largest.
    noise = LARGEST_NOISE * torch.rand(len(video), 1, 1, 1, 1).square()
    with autocast():
        mean, log_variance = vae.moments(video)
        mean, log_variance = mean.float(), log_variance.float()
        x = vae.post_quant_conv(mean + noise * torch.randn_like(mean), Stream())
        output = vae.to_video(vae.decoder(x, Stream()))
    error = output.float() - video
    edges = sum((error.diff(dim=d).abs().mean() for d in (2, 3, 4) if error.shape[d] > 1), torch.zeros(()))
    weight = weight / weight.mean()
    loss = 8 * (error.square() * weight).mean() + (error.abs() * weight).mean() + 0.25 * edges
    psnr = 10 * math.log10(4 / max(float(error.detach().square().mean()), 1e-9))
    if aligned is None:
        return loss, {"psnr": psnr}
    distance = (mean - aligned).square().mean()
    loss = loss + ALIGNMENT * distance + 1e-3 * (log_variance - VARIANCE).square().mean()
    return loss, {"psnr": psnr, "distance": float(distance.detach())}


def psnr(vae: VAE, videos: Tensor) -> float:
    """Mean PSNR in dB of the reconstructions of `[B, 3, F, H, W]`, peak to peak 2."""
    total = 0.0
    for video in videos.split(1):
        with torch.no_grad(), autocast():
            output = vae.decode(vae.encode(video, None), chunk=8).float()
        total += 10 * math.log10(4 / float((output - video).square().mean()))
    return total / len(videos)


def train(folder: Path, minutes: float, resume: bool, start: Path | None = None) -> Path:
    """Train for `minutes` in all; returns the folder of the finished autoencoder (averaged weights)."""
    torch.manual_seed(0)
    vae = VAE(CONFIG) if start is None else load_module(VAE, start / "vae", torch.float32).train()
    run = Run(folder / "vae", vae, _optimizers(vae, 0.02), minutes, resume, average=0.998, warmup=30, log_every=50)
    clips = Clips(np.random.default_rng([0, run.steps]))
    components = _components(run, clips)

    def step(number: int) -> tuple[Tensor, dict[str, float], int]:
        video, weight = clips.batch(number, images_first=run.progress < 0.1)
        return *losses(vae, video, weight, components.project(video)), len(video)

    run.train(step)
    with run.averaged_weights():
        return finish(vae, clips.pools[0], run.folder / "final")


def train_decoder(folder: Path, minutes: float, resume: bool, start: Path | None = None) -> Path:
    """Train the decoder alone: the latents stay what they are, and so a transformer that makes them stays right.

    Begins with the autoencoder in `start`, else with the finished one in `folder`, and replaces that.
    """
    torch.manual_seed(1)
    target = folder / "vae" / "final"
    vae = load_module(VAE, target if start is None else start / "vae", torch.float32).train()
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    run = Run(folder / "decoder", vae, _optimizers(vae, 0.01), minutes, resume, average=0.998, warmup=30, log_every=50)
    clips = Clips(np.random.default_rng([3, run.steps, workers.rank()]))

    def step(number: int) -> tuple[Tensor, dict[str, float], int]:
        video, weight = clips.batch(number)
        return *losses(vae, video, weight, None), len(video)

    run.train(step)
    workers.dismiss()
    with run.averaged_weights():
        save_module(vae, target)
    return target


def _components(run: Run, clips: Clips) -> Components:
    """The components that the run began with."""
    path = run.folder / "components.safetensors"
    if not run.steps:
        pools = itertools.cycle(clips.pools)
        Components.measure(lambda: next(pools).batch(8), 60, CONFIG.z_dim).save(path)
    return Components.load(path)


def _optimizers(vae: VAE, rate: float) -> list[torch.optim.Optimizer]:
    return optimizers(vae, lambda n, p: p.ndim >= 4 and min(p.shape[0], p[0].numel()) >= 16, rate, rate / 10)


class Clips:
    """What the steps of the training see: windows, images and whole clips of several sizes."""

    def __init__(self, rng: np.random.Generator) -> None:
        *self.pools, self.long = [ClipPool(size, count, rng) for size, count in SIZES]

    def batch(self, number: int, images_first: bool = False) -> tuple[Tensor, Tensor]:
        """Clips and weights of step `number`, as `losses` takes them.

        Windows and images: more steps, and more different clips, in the same time than whole clips. Never only short
        ones: what a causal decoder does at later frames than it was trained on drifts.
        """
        pool = self.long if number % 8 == 5 else self.pools[(0, 1, 0, 2, 0)[number % 5]]
        pool.renew(2)
        width, height, frames = pool.size
        if number % 8 == 7 or (images_first and number % 2):
            return pool.weighted(6, SUBJECT_WEIGHT, (width, height, 1))
        if number % 8 == 3:
            return pool.weighted(1, SUBJECT_WEIGHT, (width, height, frames))
        return pool.weighted(68 // frames, SUBJECT_WEIGHT, (64, 64, frames))


def finish(vae: VAE, pool: ClipPool, target: Path) -> Path:
    """Save the autoencoder with the measured mean of each latent channel, and one standard deviation for them all: the
    small channels stay small."""
    with torch.no_grad(), autocast():
        latents = [vae.encode(pool.batch(8), None).float().transpose(0, 1).flatten(1) for _ in range(16)]
    flat = torch.cat(latents, 1)
    mean, std = flat.mean(1), float(flat.var(1).mean().sqrt())
    vae.config = replace(vae.config, latents_mean=tuple(mean.tolist()), latents_std=(std,) * len(mean))
    save_module(vae, target)
    return target
