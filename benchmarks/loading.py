"""Time and memory of loading a checkpoint and running one step: pysora beside diffusers.

    python benchmarks/loading.py [--layers 30] [--tokens 1024] [--repeats 3]

A transformer of Wan 1.3B's shape with random weights is written once, in bf16. Then each library, in a process of its
own and in turn, opens the folder and runs a step. The files are in the system's cache, as they are the second time for
a user. Memory is what is resident of the whole process: mapped weights count like copied ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from in_turn import LIBRARIES, in_turn, peak

from pysora.bench.models import token_grid
from pysora.checkpoint import load_module, save_module
from pysora.models.dit import DiT, DiTConfig

CONFIG = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
TEXT = 512


def measure(who: str, folder: Path, tokens: int) -> dict[str, float]:
    """Open the folder and run a step: seconds of both, MiB at most until the imports, the loading, and the step."""
    if who == "diffusers":
        from diffusers import WanTransformer3DModel
    t, h, w = token_grid(tokens)
    config = DiTConfig.from_dict(json.loads((folder / "config.json").read_text()))
    latents = torch.randn(1, config.in_channels, t, 2 * h, 2 * w).bfloat16()
    text, timestep = torch.randn(1, TEXT, config.text_dim).bfloat16(), torch.tensor([500.0])
    imported, start = peak(), time.perf_counter()
    with torch.inference_mode():
        if who == "diffusers":
            theirs = WanTransformer3DModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
            loaded, memory = time.perf_counter(), peak()
            theirs(latents, timestep, text, return_dict=False)
        else:
            mine = load_module(DiT, folder, torch.bfloat16)
            loaded, memory = time.perf_counter(), peak()
            mine(latents, timestep, mine.encode_text(text, [TEXT], TEXT))
    seconds = {"load s": loaded - start, "first step s": time.perf_counter() - loaded}
    return {**seconds, "imports MiB": imported, "load MiB": memory, "peak MiB": peak()}


def main() -> None:
    """Print each library's medians, and what pysora's are of diffusers'."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=LIBRARIES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, Path(given.folder), given.tokens)))
        return
    with tempfile.TemporaryDirectory(prefix="pysora-loading-") as folder:
        save_module(DiT(DiTConfig.from_dict({**CONFIG, "num_layers": given.layers})).bfloat16(), Path(folder))
        in_turn(__file__, ["--folder", folder, "--tokens", str(given.tokens)], given.repeats)


if __name__ == "__main__":
    main()
