"""Stage "vae": the embedded autoencoder, 16x16x4, in the form of the Wan 2.2 VAE."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pysora.checkpoint import load_module, save_module
from pysora.models.vae import VAE, VAEConfig
from pysora.models.vae_blocks import Stream
from pysora.training.clips import ClipPool, Size
from pysora.training.loop import Run, optimizers

CONFIG = VAEConfig(
    base_dim=16,
    decoder_base_dim=16,
    z_dim=24,
    num_res_blocks=1,
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=16,
    latents_mean=(0.0,) * 24,
    latents_std=(1.0,) * 24,
)
SIZES: tuple[Size, ...] = ((128, 128, 17), (160, 96, 17), (96, 160, 17))
KL_WEIGHT = 1e-3
VARIANCE_FLOOR = math.log(0.1**2)
"""Least log-variance of the noise that the decoder learns to live with, for latents of about unit size."""


def losses(vae: VAE, video: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction (absolute, squared, and of the differences along x, y and t, which are the edges) + KL.

    video: `[B, 3, F, H, W]` in [-1, 1].
    """
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = vae.moments(video)
        log_variance = log_variance.float().clamp(VARIANCE_FLOOR, 4.0)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        x = vae.post_quant_conv(latents, Stream())
        output = vae.to_video(vae.decoder(x, Stream()))
    error = output.float() - video
    edges = sum((error.diff(dim=d).abs().mean() for d in (2, 3, 4) if error.shape[d] > 1), torch.zeros(()))
    kl = 0.5 * (mean.float().square() + log_variance.exp() - 1 - log_variance).mean()
    squared = error.square().mean()
    loss = 8 * squared + error.abs().mean() + 0.25 * edges + KL_WEIGHT * kl
    psnr = 10 * math.log10(4 / max(float(squared.detach()), 1e-9))
    return loss, {"psnr": psnr, "kl": float(kl.detach())}


def psnr(vae: VAE, videos: Tensor) -> float:
    """Mean PSNR in dB of the reconstructions of `[B, 3, F, H, W]`, peak to peak 2."""
    total = 0.0
    for video in videos.split(1):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(vae.encode(video, None), chunk=8).float()
        total += 10 * math.log10(4 / float((output - video).square().mean()))
    return total / len(videos)


def train(folder: Path, minutes: float, resume: bool, start: Path | None = None) -> Path:
    """Train for `minutes` in all; returns the folder of the finished autoencoder (averaged weights)."""
    torch.manual_seed(0)
    vae = VAE(CONFIG) if start is None else load_module(VAE, start / "vae", torch.float32).train()
    opts = optimizers(vae, lambda n, p: p.ndim >= 4 and min(p.shape[0], p[0].numel()) >= 16, 0.02, 2e-3)
    run = Run(folder / "vae", vae, opts, minutes, resume, average=0.998, warmup=30, log_every=50)
    rng = np.random.default_rng([0, run.steps])
    pools = [ClipPool(size, 160 if i == 0 else 60, rng) for i, size in enumerate(SIZES)]

    def step(number: int) -> tuple[Tensor, dict[str, float], int]:
        pool = pools[(0, 1, 0, 2, 0)[number % 5]]
        pool.renew(1)
        width, height, _ = pool.size
        # Windows and images: more steps, and more different clips, in the same time than whole clips.
        if number % 8 == 7 or (run.progress < 0.15 and number % 2):
            video = pool.batch(4, (width, height, 1))
        elif number % 8 == 3:
            video = pool.batch(1)
        elif number % 2:
            video = pool.batch(1, (width, height, 9))
        else:
            video = pool.batch(4, (64, 64, 9))
        return *losses(vae, video), len(video)

    run.train(step)
    with run.averaged_weights():
        return finish(vae, pools[0], run.folder / "final")


def finish(vae: VAE, pool: ClipPool, target: Path) -> Path:
    """Save the autoencoder with the measured mean and standard deviation of each latent channel."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = [vae.encode(pool.batch(8), None).float().transpose(0, 1).flatten(1) for _ in range(16)]
    flat = torch.cat(latents, 1)
    mean, std = flat.mean(1), flat.std(1)
    vae.config = replace(vae.config, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))
    save_module(vae, target)
    return target
