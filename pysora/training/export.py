"""Stage "export": the trained parts as one checkpoint in the diffusers layout, weights in bf16."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pysora.checkpoint import load_module, save_module, write_json
from pysora.models.dit import DiT
from pysora.models.text import TextEncoder
from pysora.models.vae import VAE
from pysora.sampling import SamplerSettings
from pysora.training.diffusion import SHIFT

MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.0",
    "boundary_ratio": None,
    "expand_timesteps": True,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def write(folder: Path, target: Path) -> Path:
    """Assemble `target` from the finished stages in `folder`; returns `target`.

    Everything is stored as bf16: what must run in fp32 is read back as fp32, with the same values everywhere.
    """
    save_module(load_module(DiT, folder / "dit" / "final", dtype=torch.float32).bfloat16(), target / "transformer")
    save_module(load_module(VAE, folder / "vae" / "final", dtype=torch.float32).bfloat16(), target / "vae")
    written = folder / "text" / "final"
    text = TextEncoder.load(written / "text_encoder", written / "tokenizer", dtype=torch.bfloat16)
    text.save(target / "text_encoder", target / "tokenizer")
    write_json(target / "scheduler" / "scheduler_config.json", SamplerSettings("unipc", SHIFT).to_dict())
    write_json(target / "model_index.json", MODEL_INDEX)
    record = {stage: json.loads((folder / stage / "progress.json").read_text()) for stage in ("vae", "text", "dit")}
    write_json(target / "training.json", record)
    return target
