"""Stages "sketch" and "dit": flow matching on latents of the drawn world, with known frames trained in from the start.

The transformer predicts the clean latents, and is judged by the velocity that they imply (Li and He 2025,
arXiv:2511.13720): clean latents lie near few dimensions, where noise fills them all. It begins with tokens of 2x2
latents (`coarse`). "sketch" is that beginning on the linear components that the autoencoder's latents are held near,
and needs no autoencoder: both can be trained at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pysora import worlds
from pysora.checkpoint import load_module, save_module
from pysora.conditioning import TextConditions
from pysora.models.dit import DiT, DiTConfig
from pysora.models.text import TextEncoder
from pysora.models.vae import VAE
from pysora.ops._cpu import multiplies_bf16
from pysora.pipeline import Pipeline
from pysora.request import Defaults
from pysora.sampling import SamplerSettings
from pysora.training import workers
from pysora.training.clips import Size
from pysora.training.coarse import CoarseDiT, refine
from pysora.training.components import TIME, Components
from pysora.training.latents import CaptionBank, LatentPool, occupancy
from pysora.training.loop import Run, optimizers
from pysora.training.precision import autocast
from pysora.worlds import evaluate, oracle

CONFIG = DiTConfig(
    patch_size=(1, 1, 1),
    num_attention_heads=4,
    attention_head_dim=64,
    in_channels=64,
    out_channels=64,
    text_dim=256,
    ffn_dim=1016,
    num_layers=8,
)
COARSE = dataclasses.replace(CONFIG, patch_size=CoarseDiT.cells)
COARSE_SHARE = 0.5
"""Of a training from nothing, this share has coarse tokens: a fourth as many, so that a minute shows four times as many
clips. What is where, in which colour and how it moves is learnt there, and outlines with the fine ones."""
SHIFT = 8.0
"""Towards noise, in training and sampling. The largest components stand far above the others and are seen through noise
that hides the rest: with the caption of another clip the error grows mostly above level 0.9. There a shift of 3 spends
a seventh of the steps, and this one 45 %."""
DETAIL_SHARE, DETAIL_SHIFT = 0.3, 2.0
"""Share of the clips whose levels are shifted less: what the others leave below 0.5, where details and edges are made,
is 2 % of the steps."""
DEFAULTS = Defaults(width=128, height=128, frames=17, fps=8.0, steps=20, guidance=3.0)
"""What the embedded model is evaluated with."""
TEXT_DROPOUT = 0.1
KNOWN_SHARE = 0.2
"""Share of clips of which some latent frames are given."""
SMALLEST_LEVEL = 0.1
"""An error of the clean latents counts as the velocity's: over the noise level, or over this where that is less."""
POOLS: tuple[tuple[Size, int, float], ...] = (
    ((128, 128, 17), 8000, 0.68),
    ((160, 96, 17), 2000, 0.10),
    ((96, 160, 17), 2000, 0.10),
    ((128, 128, 33), 1000, 0.06),
    ((96, 96, 17), 1000, 0.06),
)
"""Size, clips kept, share of the steps."""
TOKENS_PER_STEP = 10 * 320
DRAWN = 15
"""For so many clips that are drawn a new one comes into the pool."""
EARLY_SHARE = 0.25
"""Share of the coarse steps in which three of four batches are images."""
LOOK = 1800.0
"""Seconds between two looks at what has been learnt, which take some minutes each."""
GATE = 200
"""Held-out prompts that judge coarse tokens before fine ones go on."""
RESTART = 0.5
"""Share of the full rate at which weights from an earlier training go on: the full one first undoes them."""


def noise_levels(count: int, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noise level of every latent frame, and which frames are known (level 0).

    Levels are sigmoid(normal), shifted towards noise (Esser et al. 2024, arXiv:2403.03206, section 3.1), one per clip.
    returns: float32 `[B, T]` in 0..1; bool `[B, T]`.
    """
    t = 1 / (1 + np.exp(-rng.standard_normal(count)))
    shift = np.where(rng.random(count) < DETAIL_SHARE, DETAIL_SHIFT, SHIFT)
    t = shift * t / (1 + (shift - 1) * t)
    known = np.zeros((count, frames), bool)
    for i in range(count):
        if frames > 1 and rng.random() < KNOWN_SHARE:
            known[i] = known_frames(frames, rng)
    levels = np.where(known, 0.0, t[:, None])
    return torch.from_numpy(levels).float(), torch.from_numpy(known)


def known_frames(frames: int, rng: np.random.Generator) -> np.ndarray:
    """One of the sets first, last, both, prefix, suffix, random; never all of the frames. returns: bool `[T]`."""
    known = np.zeros(frames, bool)
    kind = int(rng.integers(6))
    n = int(rng.integers(1, frames))
    if kind in (0, 2):
        known[0] = True
    if kind in (1, 2):
        known[-1] = True
    if kind == 3:
        known[:n] = True
    if kind == 4:
        known[-n:] = True
    if kind == 5:
        known[rng.permutation(frames)[:n]] = True
    if known.all():
        known[int(rng.integers(frames))] = False
    return known


class Auxiliary(nn.Module):
    """The model with heads that are thrown away: from the tokens of a middle block, the class and where it is."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit
        self.classify = nn.Linear(CONFIG.width, len(worlds.CLASSES))
        self.locate = nn.Linear(CONFIG.width, 1)
        self.tokens = torch.empty(0)
        dit.blocks[len(dit.blocks) // 2].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:
        self.tokens = tokens

    def losses(self, classes: Tensor, occupied: Tensor) -> Tensor:
        """After a call of the model. classes: int64 `[B]`; occupied: `[B, L]` in 0..1. returns: scalar."""
        tokens = self.tokens.float()
        named = F.cross_entropy(self.classify(tokens.mean(1)), classes)
        return named + F.binary_cross_entropy_with_logits(self.locate(tokens)[..., 0], occupied)


class Trainer:
    """What a step needs beside the model: pools and captions.

    folder: that of all stages, for the text encoder. encode: clips `[B, 3, F, H, W]` to normalised latents.
    seed: differs where a training goes on.
    """

    def __init__(self, folder: Path, encode: Callable[[Tensor], Tensor], seed: int) -> None:
        self.rng = np.random.default_rng([2, seed, workers.rank()])
        # What decides a step's cost is the same for all workers.
        self.choices = np.random.default_rng([2, seed])
        written = folder / "text" / "final"
        self.text = TextEncoder.load(written / "text_encoder", written / "tokenizer", dtype=torch.float32)
        self.bank = CaptionBank(self.text, 8, self.rng)
        self.pools = [LatentPool(encode, size, n, self.rng) for size, n, _ in POOLS]
        self.shares = [share for _, _, share in POOLS]
        self.fill(1500 // workers.count())

    def fill(self, clips: int) -> None:
        """Put the first `clips` clips into the pools, by their shares."""
        for pool, share in zip(self.pools, self.shares, strict=True):
            for _ in range(max(8, int(clips * share)) // 8):
                pool.add(8)

    def step(self, model: Auxiliary, images: float) -> tuple[Tensor, dict[str, float], int]:
        """One batch from one pool; a share `images` of the steps are images. returns as `Run.train` wants."""
        pool = self.pools[int(self.choices.choice(len(self.pools), p=self.shares))]
        image = self.choices.random() < images
        T, h, w = model.dit.grid(pool.shape)
        frames = 1 if image else (int(self.choices.integers(2, T)) if self.choices.random() < 0.1 else T)
        count = min(128, TOKENS_PER_STEP // (frames * h * w))
        pool.add(self.rng.poisson(count / DRAWN))
        z, attributes, boxes = pool.batch(count)
        z = z[:, :, :frames]
        levels, known = noise_levels(count, frames, self.rng)
        loss = self.flow_loss(model.dit, z, levels, known, attributes)
        classes = torch.tensor([a.indices[0] for a in attributes])
        occupied = torch.stack([occupancy(each, (frames, h, w), TIME) for each in boxes])
        helped = model.losses(classes, occupied)
        kind = "image" if image else "video"
        return loss + 0.1 * helped, {kind: float(loss.detach()), "auxiliary": float(helped.detach())}, count

    def flow_loss(
        self, dit: DiT, z: Tensor, levels: Tensor, known: Tensor, attributes: list[worlds.Attributes]
    ) -> Tensor:
        """Mean squared error of the velocity, (x - z) / level, on the frames that are not known."""
        embeds, lengths = self.bank.batch(attributes, self.rng.random(len(z)) < TEXT_DROPOUT)
        noise = torch.randn_like(z)
        t = levels[:, None, :, None, None]
        timestep = 1000 * levels[:, 0]
        if known.any():
            _, h, w = dit.grid(z.shape)
            timestep = 1000 * levels.repeat_interleave(h * w, 1)
        with autocast():
            context = dit.encode_text(embeds, lengths, self.text.text_length)
            clean = dit((1 - t) * z + t * noise, timestep, context)
        error = ((clean.float() - z) / t.clamp(min=SMALLEST_LEVEL)).square()
        unknown = (~known).float()[:, None, :, None, None].expand_as(error)
        mean: Tensor = (error * unknown).sum() / unknown.sum()
        return mean


def assemble(dit: DiT, vae: VAE, text: TextEncoder) -> Pipeline:
    """The trained parts as the pipeline that users run."""
    conditions = TextConditions(encoder=text)
    # The transformer takes a timestep per token too, but diffusers' pipeline gives one to each patch of 2 and no other.
    return Pipeline(dit, vae, conditions, SamplerSettings("unipc", SHIFT, "clean"), DEFAULTS)


def look(run: Run, text: TextEncoder, vae: VAE, count: int = 24) -> None:
    """Judge held-out prompts, write the accuracy to `accuracy.txt` and the frames of a few clips to `sheet.png`."""
    prompts = evaluate.held_out_prompts(count, seed=run.steps)
    pipeline = assemble(_dit(run), vae, text)
    clips: list[np.ndarray] = []
    with run.averaged_weights(), autocast():
        for start in range(0, count, 8):
            videos = pipeline.generate([each for each, _ in prompts[start : start + 8]], seed=run.steps + start)
            assert isinstance(videos, list)
            clips += [video.frames for video in videos]
    judged = [oracle.judge(clip) for clip in clips]
    scores = evaluate.score(judged, [a for _, a in prompts])
    line = f"clips seen {run.seen}, {run.elapsed / 60:.0f} min: {scores}"
    with (run.folder / "accuracy.txt").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)
    rows = [np.concatenate(list(clip[::4]), 1) for clip in clips[:24]]
    half = len(rows) // 2
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half : 2 * half])], 1)
    Image.fromarray(sheet).save(run.folder / "sheet.png")


def sketch(folder: Path, minutes: float, resume: bool) -> Path:
    """Train coarse tokens for `minutes` on the components that the stage "vae" began with; returns the model's folder.

    The rate does not fall: "dit" goes on from here.
    """
    components = Components.load(folder / "vae" / "components.safetensors")
    run = _run(folder / "sketch", minutes, resume, _coarse(None), 1.0, floor=1.0)
    _train_coarse(run, Trainer(folder, components.project, run.steps))
    workers.dismiss()
    return _finish(run)


def train(folder: Path, minutes: float, resume: bool, start: Path | None = None) -> Path:
    """Train for `minutes` in all on the finished autoencoder in `folder`; returns the folder of the model.

    Without `start` it begins with coarse tokens, and with what "sketch" left, where there is that.
    """
    vae = load_module(VAE, folder / "vae" / "final", dtype=torch.float32)
    # Less than half the time, at an error of a hundredth: noise that the transformer does not see.
    precision = torch.bfloat16 if multiplies_bf16() else torch.float32
    encoder = load_module(VAE, folder / "vae" / "final", dtype=precision)

    def encode(video: Tensor) -> Tensor:
        return encoder.normalize(encoder.encode(video.to(precision), None)).float()

    target = folder / "dit"
    fine = load_module(DiT, start / "transformer", torch.float32) if start else DiT(CONFIG)
    if start or (resume and (target / "state.safetensors").exists()):
        run = _run(target, minutes, resume, fine, RESTART, floor=0.02)
        trainer = Trainer(folder, encode, run.steps)
    else:
        sketched = folder / "sketch" / "final"
        begun = _coarse(sketched if sketched.is_dir() else None)
        coarse = _run(target / "coarse", minutes * COARSE_SHARE, resume, begun, 1.0, floor=0.02)
        trainer = Trainer(folder, encode, coarse.steps)
        if coarse.progress < 1:
            _train_coarse(coarse, trainer)
            if not workers.rank():
                look(coarse, trainer.text, vae, GATE)
        with coarse.averaged_weights():
            fine = refine(_dit(coarse), CONFIG)
        run = _run(target, minutes, False, fine, RESTART, floor=0.02)
        run.elapsed, run.seen = coarse.elapsed, coarse.seen
    looks = [(LOOK, lambda: look(run, trainer.text, vae))]
    run.train(lambda _: trainer.step(_model(run), images=0.08), every=looks)
    workers.dismiss()
    return _finish(run)


def _coarse(weights: Path | None) -> CoarseDiT:
    """A transformer with coarse tokens, from `weights`, or from random ones, the same in all workers."""
    torch.manual_seed(0)
    return CoarseDiT(COARSE) if weights is None else load_module(CoarseDiT, weights, torch.float32)


def _train_coarse(run: Run, trainer: Trainer) -> None:
    """Mostly images first: they cost a fifth."""
    run.train(lambda _: trainer.step(_model(run), images=0.75 if run.progress < EARLY_SHARE else 0.08))


def _run(folder: Path, minutes: float, resume: bool, dit: DiT, rate: float, floor: float) -> Run:
    """A run in `folder` of the transformer, with new heads, at `rate` of the full learning rate."""
    torch.manual_seed(0)
    model = Auxiliary(dit.train())
    opts = optimizers(model, lambda n, p: ".blocks." in n and p.ndim == 2, 0.02 * rate, 2e-3 * rate)
    return Run(folder, model, opts, minutes, resume=resume, floor=floor, warmup=30)


def _model(run: Run) -> Auxiliary:
    assert isinstance(run.model, Auxiliary)
    return run.model


def _dit(run: Run) -> DiT:
    return _model(run).dit


def _finish(run: Run) -> Path:
    with run.averaged_weights():
        save_module(_dit(run), run.folder / "final")
    return run.folder / "final"
