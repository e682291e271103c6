"""From a prompt to a video: conditions, noise, the denoising loop, decoding.

Letters: B videos, C latent channels, T H W latent grid, L tokens, M text tokens, F frames.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysora import footprint, ops
from pysora.approximation import Account
from pysora.checkpoint import save_module, write_json
from pysora.conditioning import TextConditions, stack, trim
from pysora.media import Frames, Video
from pysora.memory import parse_memory, readable
from pysora.models.dit import DiT, TextContext
from pysora.models.projection import in_int8, int8_bytes
from pysora.models.vae import VAE
from pysora.models.vae_plan import TilePlan
from pysora.models.vae_tiles import frugally
from pysora.prediction import Predictor, guided_steps, reuse_bytes, shares_calls
from pysora.request import Defaults, Grid, Request, check_request
from pysora.sampling import Plan, SamplerSettings, plan

OnStep = Callable[[int, int, Tensor], bool | None]
logger = logging.getLogger("pysora")
AT_ONCE = 512
"""Pixels of latents that are decoded at once: of small videos several latent frames, since few pixels keep a processor
waiting (5 frames of 8x8 take 0.7 times as long together in bf16, 0.9 in fp32). Large frames are decoded one by one."""


class Cancelled(RuntimeError):
    """`on_step` returned False. step: how many steps were done; latents: fp32 [B, C, T, H, W] after them."""

    def __init__(self, step: int, steps: int, latents: Tensor) -> None:
        super().__init__(f"cancelled after step {step} of {steps}")
        self.step, self.latents = step, latents


class NonFiniteError(ArithmeticError):
    """NaN or infinity where numbers should be; the message names the stage, the step and the dtype."""


class Pipeline:
    """A checkpoint that makes videos.

    dit, vae: the models, on one device. text: its text conditions. scheduler: the sampler and its shift.
    defaults: size, frames and so on where the caller says nothing.
    expand_timesteps: whether the transformer takes one timestep per token (Wan 2.2 TI2V) or one per video.
    """

    def __init__(
        self,
        dit: DiT,
        vae: VAE,
        text: TextConditions,
        scheduler: SamplerSettings | None = None,
        defaults: Defaults | None = None,
        *,
        expand_timesteps: bool = False,
    ) -> None:
        channels = dit.config.in_channels, dit.config.out_channels, vae.config.z_dim
        if len(set(channels)) > 1:
            raise ValueError(f"in_channels, out_channels of the transformer and z_dim must be equal, got {channels}")
        if dit.config.patch_size[0] != 1:
            raise ValueError(f"patch_size must be 1 along time, got {dit.config.patch_size}")
        self.dit, self.vae, self.text = dit, vae, text
        self.scheduler = scheduler or SamplerSettings()
        self.defaults = defaults or Defaults()
        self.expand_timesteps = expand_timesteps
        self._rounded: DiT | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's activations."""
        return self.dit.proj_out.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.dit.proj_out.weight.device

    @property
    def grid(self) -> Grid:
        """What sizes and numbers of frames are made without cropping."""
        _, ph, pw = self.dit.config.patch_size
        factor = self.vae.spatial_factor
        return Grid((factor * pw, factor * ph), self.vae.temporal_factor)

    def latent_shape(self, request: Request) -> tuple[int, int, int, int]:
        """(C, T, H, W) of each video's latents."""
        width, height = request.made_size
        factor = self.vae.spatial_factor
        T = (request.made_frames - 1) // self.vae.temporal_factor + 1
        return self.vae.config.z_dim, T, height // factor, width // factor

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        memory: str | float | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Video | list[Video]:
        """Make videos; `pysora.generate` has the arguments."""
        given = None if prompt_embeds is None else _embeddings(prompt_embeds)
        request = check_request(
            prompt,
            defaults=self.defaults,
            grid=self.grid,
            sampler=self.scheduler.name,
            shift=self.scheduler.shift,
            options=options,
            embedded=None if given is None else len(given[0]),
            device=self.device.type,
        )
        schedule = plan(request.sampler, request.steps, request.shift)
        guided = guided_steps(schedule, request)
        tiling = self._tiling(request, memory)
        for note in request.notes():
            logger.warning("%s", note)
        start = self._start(request, latents)
        positive, negative = self._conditions(request, given)
        clean, accounts = self._denoise(start, schedule, request, guided, (positive, negative), on_step)
        videos = [self._video(request, clean[i], i, accounts[i], latents is None, tiling) for i in range(request.batch)]
        return videos[0] if request.batch == 1 and not isinstance(prompt, list | tuple) else videos

    def decode(self, latents: Tensor, tiling: TilePlan | None = None) -> Frames:
        """Normalised latents [C, T, H, W] -> frames uint8 [F, H*s, W*s, 3], a few latent frames at a time.

        tiling: of `vae.decoding` for these latents, to keep to its bound of memory; None does without tiles.
        """
        weight = self.vae.post_quant_conv.weight
        z = self.vae.denormalize(latents[None].to(weight.device, weight.dtype))
        chunk = 1 if tiling else max(1, AT_ONCE // (z.shape[3] * z.shape[4]))
        way = tiling or self.vae.decoding(z.shape, chunk, z.element_size()).whole()
        frames = np.empty((self.vae.frames(z.shape[2]), way.rows, way.cols, 3), np.uint8)
        pieces = self.vae.decode_pieces(z, way, chunk)
        with torch.no_grad():
            for start, rows, cols, values, _ in frugally(pieces) if tiling else pieces:
                _check_finite(values, "the decoded frames are", weight.dtype)
                pixels = (values[0].float() * 127.5 + 127.5).round().to(torch.uint8)
                frames[start : start + pixels.shape[1], rows, cols] = pixels.permute(1, 2, 3, 0).cpu().numpy()
        return frames

    def save(self, path: str | Path) -> None:
        """Write the checkpoint in the diffusers layout, which `pysora.load` and diffusers' WanPipeline open."""
        path = Path(path)
        encoder = self.text.encoder
        save_module(self.dit, path / "transformer")
        save_module(self.vae, path / "vae")
        encoder.save(path / "text_encoder", path / "tokenizer")
        (path / "scheduler").mkdir(exist_ok=True)
        scheduler = self.scheduler.to_dict()
        write_json(path / "scheduler" / "scheduler_config.json", scheduler)
        write_json(path / "generation_config.json", asdict(self.defaults))
        # Last: a folder without it is no checkpoint, so an interrupted save is not taken for one.
        index = {
            "_class_name": "WanPipeline",
            "boundary_ratio": None,
            "expand_timesteps": self.expand_timesteps,
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "text_encoder": ["transformers", type(encoder.model).__name__],
            "tokenizer": ["transformers", encoder.tokenizer_class],
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "transformer_2": [None, None],
            "vae": ["diffusers", "AutoencoderKLWan"],
        }
        write_json(path / "model_index.json", index)

    def _tiling(self, request: Request, memory: str | float | None) -> TilePlan | None:
        """How to decode within what the bound leaves; None, without tiles, where nothing binds.

        Raises ValueError where the bound, or all there is, cannot suffice.
        """
        C, T, H, W = self.latent_shape(request)
        _, ph, pw = self.dit.config.patch_size
        item, rows = self.dtype.itemsize, self.text.text_length
        grid = (T, H // ph, W // pw)
        at_once = request.batch * (1 + (request.guidance > 1.0 and shares_calls(request.batch, grid)))
        denoising = footprint.denoising(self.dit.config, at_once, grid, rows, item)
        denoising += reuse_bytes(self.dit.config, request, C * T * H * W, rows, item)
        if request.approximation.int8:
            denoising += int8_bytes(self.dit)
        # Beside the decoder: the texts, the latents before and after the loop, the frames.
        pixels = request.made_frames * math.prod(request.made_size)
        kept = request.batch * (footprint.texts(self.dit.config, rows, item) + 2 * C * T * H * W * 4 + pixels * 3)
        job = self.vae.decoding((1, C, T, H, W), 1, self.vae.post_quant_conv.weight.itemsize)
        total = footprint.available(self.device)
        model = sum(p.nbytes for module in (self.dit, self.vae) for p in module.parameters())
        allowed = total - model if memory is None else min(parse_memory(memory), total - model)
        found = job.fitting(allowed, kept) if denoising <= allowed else None
        if found is not None:
            return None if memory is None and len(found.tiles) == 1 else found
        need = max(denoising, job.least(kept))
        size = "{}x{}".format(*request.size)
        what = f"{request.batch} video{'s' * (request.batch > 1)} of {size} with {request.frames} frames"
        needed = f"{what} would need about {readable(need)} of memory above the model's"
        if memory is not None and need > parse_memory(memory):
            raise ValueError(f"{needed}, more than the {readable(parse_memory(memory))} that memory allows")
        raise ValueError(f"{needed} {readable(model)}, and there are {readable(total)} in all")

    def _start(self, request: Request, latents: Tensor | None) -> Tensor:
        """The latents to start from, fp32 [B, C, T, H, W]: the caller's, or noise that the seed decides."""
        shape = self.latent_shape(request)
        if latents is None:
            draws = {i: ops.noise(shape, request.seed, sample=i, device=self.device) for i in set(request.copies)}
            return torch.stack([draws[i] for i in request.copies])
        needed = (request.batch, *shape)
        given = latents[None] if latents.ndim == 4 else latents
        if tuple(given.shape) != needed:
            raise ValueError(f"latents must be {list(needed)} for this size and length, got {list(latents.shape)}")
        given = given.to(self.device, torch.float32)
        _check_finite(given, "the latents passed in are", latents.dtype)
        return given

    def _conditions(self, request: Request, given: list[list[Tensor]] | None) -> tuple[TextContext, TextContext | None]:
        """Keys and values of the prompts, and of the negative prompts where there is guidance."""
        guided = request.guidance > 1.0
        length = self.text.text_length
        if given is not None:
            n = request.batch // len(given[0])
            pairs = [stack([row for row in rows for _ in range(n)]) for rows in given]
        else:
            pairs = [self.text.encode(request.prompts or ())]
        if guided and len(pairs) == 1:
            pairs.append(self.text.encode(request.negatives))
        # A public checkpoint's encoder is several times its transformer, and has done its work.
        self.text.free(larger_than=sum(p.nbytes for p in self.dit.parameters()))
        contexts = []
        for embeds, lengths in pairs[: 1 + guided]:
            _check_finite(embeds, "the text embeddings are", embeds.dtype)
            contexts.append(self.dit.encode_text(embeds.to(self.device), lengths, length))
        return contexts[0], contexts[1] if guided else None

    def _denoise(
        self,
        x: Tensor,
        schedule: Plan,
        request: Request,
        guided: Sequence[bool],
        texts: tuple[TextContext, TextContext | None],
        on_step: OnStep | None,
    ) -> tuple[Tensor, list[Account]]:
        """Noise [B, C, T, H, W] -> clean latents, and what was left out of each video.

        The state stays fp32, the model sees its own dtype.
        """
        predicts, per_token = self.scheduler.predicts, self.expand_timesteps
        rounded = self._in_int8() if request.approximation.int8 else None
        predict = Predictor(
            self.dit, schedule, request, guided, *texts, per_token=per_token, predicts=predicts, rounded=rounded
        )
        guidance, steps = request.guidance, len(schedule)
        history: list[Tensor] = []
        finite: list[Tensor] = []
        for i in range(steps):
            velocity, unguided = predict(i, x)
            x, history = schedule.advance(i, x, velocity, history, prediction_uncond=unguided, guidance=guidance)
            finite.append(torch.isfinite(x).all())
            if x.device.type == "cpu" or i + 1 == steps:  # on a GPU each look would wait for it
                _check_steps(finite, i + 2 - len(finite), steps, self.dtype)
                finite.clear()
            if on_step is not None and on_step(i + 1, steps, x) is False:
                raise Cancelled(i + 1, steps, x)
        return x, predict.accounts(x)

    def _in_int8(self) -> DiT:
        """The transformer with products in 8 bits, made once: half of a bf16 model's memory more."""
        if self._rounded is None:
            self._rounded = in_int8(self.dit)
        return self._rounded

    def _video(
        self, request: Request, latents: Tensor, i: int, account: Account, seeded: bool, tiling: TilePlan | None
    ) -> Video:
        """Decode video i, crop it to the middle and cut it to the length that was asked for."""
        frames = self.decode(latents, tiling)
        (width, height), (made_width, made_height) = request.size, request.made_size
        top, left = (made_height - height) // 2, (made_width - width) // 2
        frames = frames[: request.frames, top : top + height, left : left + width]
        meta = {
            "prompt": None if request.prompts is None else request.prompts[i],
            "negative_prompt": request.negatives[i],
            "seed": request.seed if seeded else None,
            "sample": request.copies[i],
            "size": "{}x{}".format(*request.size),
            "steps": request.steps,
            "guidance": request.guidance,
            "shift": request.shift,
            "sampler": request.sampler,
            "approximation": account.to_dict(request.approximation),
            "dtype": str(self.dtype).removeprefix("torch."),
            "notes": request.notes(),
        }
        return Video(np.ascontiguousarray(frames), request.fps, latents.cpu(), meta)


def _embeddings(given: Tensor | Sequence[Tensor]) -> list[list[Tensor]]:
    """[rows of the prompts] or [rows of the prompts, rows of the negative prompts], each row [M, text_dim]."""
    parts = [given] if isinstance(given, Tensor) else list(given)
    if not 1 <= len(parts) <= 2 or any(not isinstance(p, Tensor) or p.ndim not in (2, 3) or not len(p) for p in parts):
        raise TypeError("prompt_embeds must be [M, text_dim], [B, M, text_dim] or a pair of these")
    rows = [[trim(row) for row in (part[None] if part.ndim == 2 else part)] for part in parts]
    if len(rows) == 2 and len(rows[1]) == 1:
        rows[1] *= len(rows[0])
    if len(rows[-1]) != len(rows[0]):
        raise ValueError(f"prompt_embeds must pair equal numbers of texts, got {len(rows[0])} and {len(rows[1])}")
    return rows


def _check_steps(finite: Sequence[Tensor], first: int, steps: int, dtype: torch.dtype) -> None:
    """Whether each of the steps from `first` on left finite latents."""
    good = torch.stack(list(finite)).tolist()
    if not all(good):
        raise _not_finite(f"step {first + good.index(False)} of {steps}: the latents are", dtype)


def _check_finite(x: Tensor, what: str, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(x).all()):
        raise _not_finite(what, dtype)


def _not_finite(what: str, dtype: torch.dtype) -> NonFiniteError:
    name = str(dtype).removeprefix("torch.")
    return NonFiniteError(f"{what} not finite (NaN or infinity), computed in {name}; nothing was written")
