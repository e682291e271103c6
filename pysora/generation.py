"""The one call: a prompt in, a video out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pysora.loading import open_model
from pysora.media import Video
from pysora.pipeline import OnStep, Pipeline
from pysora.request import Size


def generate(
    prompt: str | Sequence[str] | None = None,
    *,
    model: Pipeline | str | Path | None = None,
    size: Size | None = None,
    frames: int | None = None,
    fps: float | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    seed: int | None = None,
    n: int = 1,
    sampler: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    memory: str | float | None = None,
    preset: str = "exact",
    max_error: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    int8: bool | None = None,
    latents: Tensor | None = None,
    prompt_embeds: Tensor | Sequence[Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Video | list[Video]:
    """Make a video for a prompt, or a batch of videos for a list of prompts.

    prompt: what the video shows, English or Chinese; a list is made in one batch.
    model: a loaded pipeline or a checkpoint folder; None is the embedded model.
    size: (width, height) or "128x96", frames: any from 1 (an image) on. What the model cannot make exactly is made
        larger and cropped, which is logged and noted in `Video.meta["notes"]`.
    fps, steps (1 to 1000), guidance (1: none), shift, sampler ("euler", "unipc", "dpm++"): None is the checkpoint's.
    negative_prompt: what guidance leads away from; one for all prompts or a list.
    seed: decides the video, 0 to 2**32 - 1; None draws one, found in `Video.meta["seed"]`. n: videos per prompt; the
        first is that of n = 1, and a prompt's video does not depend on the others in its batch.
    dtype, device: see `pysora.load`. memory: upper bound above the model, in bytes or "4GB".
    preset: "exact", or "fast", which leaves work out and says in `Video.meta["approximation"]` what, and how wrong the
        latents are estimated to be; docs/fast.md. max_error, guidance_interval, int8: one of its knobs, over the
        preset's: the relative change up to which the transformer's output is reused (0 to 1; 0: never); the (lowest,
        highest) noise level with guidance (0 to 1); products in 8 bits.
    latents: fp32 [C, T, H, W] or [B, C, T, H, W], start from these instead of noise.
    prompt_embeds: instead of a prompt, [M, text_dim] or [B, M, text_dim] of the text encoder (zero rows at the end are
        padding), or a pair of these for the prompt and the negative prompt.
    on_step: called as (steps done, steps, latents) after each step; returning False raises `Cancelled`.

    Returns one Video for one prompt with n = 1, else a list: all of the first prompt, then all of the second, ...
    Raises ValueError or TypeError on a bad argument (also where the memory does not suffice, with what would be
    needed), CheckpointError on a bad model, NonFiniteError on NaN or infinity, Cancelled.
    """
    return open_model(model, dtype, device).generate(
        prompt,
        memory=memory,
        latents=latents,
        prompt_embeds=prompt_embeds,
        on_step=on_step,
        size=size,
        frames=frames,
        fps=fps,
        steps=steps,
        guidance=guidance,
        shift=shift,
        negative_prompt=negative_prompt,
        seed=seed,
        n=n,
        sampler=sampler,
        preset=preset,
        max_error=max_error,
        guidance_interval=guidance_interval,
        int8=int8,
    )
