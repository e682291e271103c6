"""Time and memory of decoding a whole video with the public autoencoder's shape: pysora beside diffusers.

    python benchmarks/decoding.py [--size 256x256] [--frames 17] [--dtype bf16] [--memory 2GiB] [--alone] [--repeats 1]

Random weights and latents; each library in a process of its own, in turn. pysora's frames are taken one after the
other and dropped, as a writer of files would; diffusers returns all of them. Memory is what is resident above the
loaded model and the latents at most.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from in_turn import LIBRARIES, in_turn, peak

from pysora.bench.case import DTYPES
from pysora.checkpoint import load_module, save_module
from pysora.models.vae import VAE, VAEConfig


def measure(who: str, folder: str, given: argparse.Namespace) -> dict[str, float]:
    """Decode one video: seconds, and MiB above the model."""
    width, height = map(int, given.size.split("x"))
    dtype = DTYPES[given.dtype]
    config = VAEConfig()
    shape = 1, config.z_dim, (given.frames - 1) // 4 + 1, height // 8, width // 8
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        if who == "diffusers":
            from diffusers import AutoencoderKLWan

            theirs = AutoencoderKLWan.from_pretrained(folder, dtype=dtype).eval()
            theirs.decode(latents[:, :, :1, :2, :2])
            before, start = peak(), time.perf_counter()
            frames = theirs.decode(latents, return_dict=False)[0].shape[2]
        else:
            mine = load_module(VAE, folder, dtype)
            mine.decode(latents[:, :, :1, :2, :2])
            before, start = peak(), time.perf_counter()
            frames = sum(part.shape[2] for part in mine.decode_frames(latents, memory=given.memory))
    assert frames == given.frames, frames
    return {"decode s": time.perf_counter() - start, "above MiB": peak() - before}


def main() -> None:
    """Print each library's medians, and what pysora's are of diffusers'."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--memory", help="pysora's bound; none without it")
    parser.add_argument("--alone", action="store_true", help="leave diffusers out")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=LIBRARIES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.folder, given)))
        return
    with tempfile.TemporaryDirectory(prefix="pysora-decoding-") as folder:
        save_module(VAE(VAEConfig()), Path(folder))
        passed = ["--folder", folder, "--size", given.size, "--frames", str(given.frames), "--dtype", given.dtype]
        passed += ["--memory", given.memory] if given.memory else []
        in_turn(__file__, passed, given.repeats, LIBRARIES[:1] if given.alone else LIBRARIES)


if __name__ == "__main__":
    main()
