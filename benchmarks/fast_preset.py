"""What each knob of the fast preset saves and costs: `python benchmarks/fast_preset.py --prompts 8`.

For each setting: the share of the transformer's calls that it saves, how much faster a video is there (exact and
setting in turn, prompt by prompt; from prompt to frames, and to latents alone), the PSNR of its videos against the
exact ones, and the estimated error of the latents beside the true one: medians, the worst, and means over the prompts.
The values of `pysora.approximation.FAST` are chosen from this table: the most calls saved, at least half of them, with
every video at 28 dB or more.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pysora import Video
from pysora.loading import open_model
from pysora.worlds.evaluate import held_out_prompts

SETTINGS: list[dict[str, Any]] = [
    *({"max_error": bound} for bound in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
    *({"guidance_interval": interval} for interval in ((0.3, 1.0), (0.5, 1.0), (0.7, 1.0), (0.0, 0.9))),
    {"int8": True},
    {"max_error": 0.1, "guidance_interval": (0.5, 1.0)},
    *({"max_error": bound, "int8": True} for bound in (0.15, 0.2, 0.25, 0.3)),
    {"preset": "fast"},
]
AIM_SAVED, AIM_DB = 0.5, 28.0


@dataclass(frozen=True)
class Row:
    """A setting over all prompts: share of calls saved, and per video the exact one's time over its own (whole, and of
    the latents alone), PSNR in dB, the estimated and the true error."""

    setting: str
    saved: float
    faster: list[float]
    faster_latents: list[float]
    psnr: list[float]
    estimated: list[float]
    true: list[float]

    def __str__(self) -> str:
        ratios = [e / t for e, t in zip(self.estimated, self.true, strict=True) if t > 0]
        between = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-"
        return (
            f"{self.setting:44}{self.saved:7.0%}{np.median(self.faster):8.2f}x{np.median(self.faster_latents):8.2f}x{np.median(self.psnr):9.1f}{min(self.psnr):8.1f}"
            f"{np.mean(self.estimated):11.3f}{np.mean(self.true):8.3f}   {between}"
        )


HEADING = (
    f"{'setting':44}{'saved':>7}{'faster':>9}{'latents':>9}"
    f"{'PSNR':>9}{'worst':>8}{'estimated':>11}{'true':>8}   estimated / true"
)


def psnr(video: Video, exact: Video) -> float:
    """Peak signal-to-noise ratio of all frames in dB, peak 255; 100 where they are equal."""
    error = float(np.mean((video.frames.astype(np.float64) - exact.frames) ** 2)) / 255**2
    return -10 * math.log10(max(error, 1e-10))


def true_error(video: Video, exact: Video) -> float:
    """|approximate - exact| / |exact| of the latents."""
    assert video.latents is not None and exact.latents is not None
    return float((video.latents - exact.latents).norm() / exact.latents.norm())


@dataclass(frozen=True)
class Timed:
    """A video, and the seconds until its latents were there and until it was."""

    video: Video
    latents_s: float
    whole_s: float


def compare(setting: dict[str, Any], made: Sequence[Timed], exact: Sequence[Timed]) -> Row:
    """Measure the videos of one setting against the exact ones of the same prompts and seed."""
    accounts = [each.video.meta["approximation"] for each in made]
    pairs = [(a.video, b.video) for a, b in zip(made, exact, strict=True)]
    return Row(
        " ".join(f"{name}={value}" for name, value in setting.items()),
        1 - sum(a["calls"] for a in accounts) / sum(a["calls_exact"] for a in accounts),
        [b.whole_s / a.whole_s for a, b in zip(made, exact, strict=True)],
        [b.latents_s / a.latents_s for a, b in zip(made, exact, strict=True)],
        [psnr(*pair) for pair in pairs],
        [a["estimated_error"] for a in accounts],
        [true_error(*pair) for pair in pairs],
    )


def main() -> None:
    """Print the table, and whether the preset reaches its aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="number of prompts, of held-out combinations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="checkpoint folder; the embedded model without it")
    for name, kind in (("size", str), ("frames", int), ("steps", int), ("guidance", float)):
        parser.add_argument(f"--{name}", type=kind, help="the checkpoint's own without it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    pipeline = open_model(given.model)
    prompts = [prompt for prompt, _ in held_out_prompts(given.prompts)]
    options = {name: getattr(given, name) for name in ("seed", "size", "frames", "steps", "guidance")}

    def make(prompt: str, setting: dict[str, Any]) -> Timed:
        seen: list[float] = []
        start = time.perf_counter()
        video = pipeline.generate(prompt, **options, **setting, on_step=lambda *_: seen.append(time.perf_counter()))
        assert isinstance(video, Video)
        return Timed(video, seen[-1] - start, time.perf_counter() - start)

    make(prompts[0], {})  # the first call fills the allocator
    rows = []
    if not given.json:
        print(HEADING, flush=True)
    for setting in SETTINGS:
        pairs = [(make(prompt, setting), make(prompt, {})) for prompt in prompts]
        rows.append(compare(setting, [a for a, _ in pairs], [b for _, b in pairs]))
        if not given.json:
            print(rows[-1], flush=True)
    fast = rows[-1]
    met = fast.saved >= AIM_SAVED and min(fast.psnr) >= AIM_DB
    if given.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "aim_met": met}, indent=2))
    else:
        aim = f"at least {AIM_SAVED:.0%} of the calls saved with every video at {AIM_DB:g} dB or more"
        print(f"the fast preset {'reaches' if met else 'misses'} its aim: {aim}")


if __name__ == "__main__":
    main()
