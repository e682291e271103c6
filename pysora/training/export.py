"""Stage "export": the trained parts as one checkpoint in the diffusers layout, weights in bf16."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pysora.checkpoint import load_module, write_json
from pysora.loading import embedded_path
from pysora.models.dit import DiT
from pysora.models.text import TextEncoder
from pysora.models.vae import VAE
from pysora.training.diffusion import assemble


def write(folder: Path, target: Path) -> Path:
    """Assemble `target` from the finished stages in `folder`; returns `target`.

    Everything is stored as bf16: what must run in fp32 is read back as fp32, with the same values everywhere.
    """
    written = folder / "text" / "final"
    encoder = TextEncoder.load(written / "text_encoder", written / "tokenizer", dtype=torch.bfloat16)
    dit = load_module(DiT, folder / "dit" / "final", dtype=torch.float32).bfloat16()
    vae = load_module(VAE, folder / "vae" / "final", dtype=torch.bfloat16)
    assemble(dit, vae, encoder).save(target)
    # A stage whose finished parts were put into `folder` has no record there: they are the embedded model's.
    earlier = embedded_path() / "training.json"
    record = json.loads(earlier.read_text()) if earlier.exists() else {}
    for stage in ("vae", "text", "dit", "decoder"):
        progress = folder / stage / "progress.json"
        if progress.exists():
            record[stage] = json.loads(progress.read_text())
    write_json(target / "training.json", record)
    return target
