"""Cases of the models: layers of the transformer, the autoencoder, and a video from a prompt, beside diffusers'.

Both sides load the same folder with their own loaders, so each keeps in fp32 what it always keeps in fp32.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysora import loading
from pysora.bench.case import DTYPES, PIPELINE, Case, Draw, has_diffusers
from pysora.checkpoint import load_module, save_module
from pysora.models.dit import DiT, DiTConfig
from pysora.models.vae import VAE, VAEConfig
from pysora.models.vae_cost import Tally
from pysora.pipeline import Pipeline

# Longer ones take minutes in float64.
LONGEST_EXACT = 2048
PROMPT = "a cat sits on a windowsill watching the sunset, take {}"


def dit(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """Layers of Wan 1.3B's shape, a step in the steady state: keys and values of the text are there.

    Operations: 12*L*D*D and 4*L*L*D for self- and 4*L*M*D for cross-attention (its queries and output are in the 12),
    4*L*D*F for the feed-forward.
    """
    M = {"full": 512, "quick": 64, "tiny": 8}[size]
    widths = {
        "full": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960},
        "quick": {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "text_dim": 256},
        "tiny": {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "text_dim": 24, "freq_dim": 32},
    }[size]

    def case(L: int) -> Case:
        config = DiTConfig.from_dict({**widths, "num_layers": 1 if L >= 1 << 15 else 2})
        D = config.width
        per_layer = 12 * L * D * D + 4 * L * L * D + 4 * L * M * D + 4 * L * D * config.ffn_dim
        t, h, w = token_grid(L)

        def draw(draw: Draw) -> tuple[Any, ...]:
            mine, theirs = both(DiT(config), dtype, "WanTransformer3DModel", draw.device)
            text = draw(1, M, config.text_dim)
            latents = draw(1, config.in_channels, t, 2 * h, 2 * w)
            return (
                mine,
                theirs,
                mine.encode_text(text, [M], M),
                latents,
                torch.tensor([500.0]).to(device=draw.device),
                text,
            )

        def exact(mine: DiT, theirs: Any, context: Any, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
            wide = copy.deepcopy(mine).double()
            out: Tensor = wide(latents, time, wide.encode_text(text, [M], M))
            return out

        return Case(
            "dit",
            f"{config.num_layers} layers of {D}, {L} tokens, {M} of text",
            dtype,
            draw=draw,
            ours=lambda mine, theirs, context, latents, time, text: mine(latents, time, context),
            rivals=diffusers(lambda mine, model, _, x, time, text: model(x, time, text, return_dict=False)[0]),
            unit="GFLOP/s",
            amount=config.num_layers * per_layer,
            exact=exact if L <= LONGEST_EXACT else None,
            length=L,
        )

    return [case(L) for L in tokens or {"full": (1024,), "quick": (320,), "tiny": (16,)}[size]]


def vae(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """Decoding with the public autoencoder's shape; the operations are those of its convolutions."""
    small = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    config = VAEConfig.from_dict(small if size == "tiny" else {})
    T, H, W = {"full": (2, 16, 16), "quick": (1, 8, 8), "tiny": (2, 2, 2)}[size]

    def draw(draw: Draw) -> tuple[Any, ...]:
        return *both(VAE(config), dtype, "AutoencoderKLWan", draw.device), draw(1, config.z_dim, T, H, W)

    def exact(mine: VAE, theirs: Any, latents: Tensor) -> Tensor:
        return copy.deepcopy(mine).double().decode(latents)

    with torch.device("meta"):
        layers = VAE(config).decoder.layers()
    chunks = [Tally(1, config.z_dim, 1, H, W, 4, first=i == 0).run(layers).flops for i in range(T)]
    return [
        Case(
            "vae",
            f"decode {4 * T - 3}x{8 * H}x{8 * W}, base {config.base_dim}",
            dtype,
            draw=draw,
            ours=lambda mine, theirs, latents: mine.decode(latents),
            rivals=diffusers(lambda mine, model, latents: model.decode(latents, return_dict=False)[0]),
            unit="GFLOP/s",
            amount=sum(chunks),
            exact=exact,
            compiles=False,
        )
    ]


def generate(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """A video from a prompt with the embedded model, in both pipelines from the same noise.

    Each call has a prompt of its own: pysora keeps the embeddings of the last texts.
    """
    folder = loading.embedded_path()
    pixels, frames, steps = {"full": (128, 17, 20), "quick": (64, 5, 4), "tiny": (32, 1, 1)}[size]
    settings: dict[str, Any] = {"guidance": 3.0, "steps": steps}

    def draw(draw: Draw) -> tuple[Any, ...]:
        mine = loading.load(folder, dtype=DTYPES[dtype], device=draw.device)
        kinds = {dtype, "fp32"} if has_diffusers() else set[str]()
        theirs = {kind: wan_pipeline(folder, DTYPES[kind]).to(draw.device) for kind in kinds}
        C, factor = mine.vae.config.z_dim, mine.vae.spatial_factor
        shape = 1, C, (frames - 1) // mine.vae.temporal_factor + 1, pixels // factor, pixels // factor
        return mine, theirs, draw(*shape, fp32=True), itertools.count(), itertools.count()

    def ours(mine: Pipeline, theirs: Any, latents: Tensor, takes: Any, _: Any) -> Tensor:
        prompt = [PROMPT.format(next(takes))]
        video = mine.generate(prompt, latents=latents, size=f"{pixels}x{pixels}", frames=frames, **settings)
        assert isinstance(video, list)  # a list of prompts gives one
        return torch.from_numpy(video[0].frames) / 255

    def run(pipeline: Any, mine: Pipeline, latents: Tensor, take: int) -> Tensor:
        made = pipeline(
            PROMPT.format(take),
            width=pixels,
            height=pixels,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=settings["guidance"],
            latents=latents,
            max_sequence_length=mine.text.text_length,
        )
        return torch.from_numpy(made.frames[0])

    return [
        Case(
            "generate",
            f"{pixels}x{pixels}, {frames} frames, {steps} steps",
            dtype,
            draw=draw,
            ours=ours,
            rivals=diffusers(lambda mine, them, latents, _, takes: run(them[dtype], mine, latents, next(takes))),
            exact=(lambda mine, them, latents, *_: run(them["fp32"], mine, latents.float(), 0))
            if has_diffusers()
            else None,
            against=PIPELINE,
            compiles=False,
        )
    ]


MODELS: dict[str, Callable[[str, str, Sequence[int]], list[Case]]] = {"dit": dit, "vae": vae, "generate": generate}


def diffusers(call: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The rivals: diffusers, where it is installed."""
    return {"diffusers": call} if has_diffusers() else {}


def token_grid(tokens: int) -> tuple[int, int, int]:
    """(t, h, w) for so many tokens: square frames, at least four of them where they are not tiny.

    Raises ValueError where no square of 4 to 64 a side divides the number.
    """
    for side in (64, 32, 16, 8, 4, 2):
        if tokens >= 4 * side * side and tokens % (side * side) == 0:
            return tokens // (side * side), side, side
    raise ValueError(f"tokens must be a multiple of 4, and at least 16, got {tokens}")


def both(module: nn.Module, dtype: str, name: str, device: torch.device) -> tuple[Any, Any]:
    """(pysora's, diffusers' or None) model with the weights of `module`, each through its own loader."""
    with tempfile.TemporaryDirectory(prefix="pysora-bench-") as folder:
        save_module(module, folder)
        mine = load_module(type(module), folder, DTYPES[dtype], device)
        if not has_diffusers():
            return mine, None
        import diffusers as library

        return mine, getattr(library, name).from_pretrained(folder, dtype=DTYPES[dtype]).to(device).eval()


def wan_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """The folder in diffusers' pipeline, without bars for what it loads and does."""
    import diffusers.utils.logging
    import transformers.utils.logging
    from diffusers import WanPipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipeline = WanPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
