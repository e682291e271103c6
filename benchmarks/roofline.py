"""The roofline on paper: the least time that each op can take on a card, from the public shapes and data sheets.

    python benchmarks/roofline.py        # prints the table of docs/gpu.md

time >= max(operations / peak, bytes / bandwidth, exponentials / special-function rate). Each input is read once and
each output written once; nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """name; bf16: dense tensor-core operations a second with fp32 sums; bandwidth: bytes a second; exponentials: a
    second (16 a clock and multiprocessor, at the boost clock). Sources: NVIDIA's data sheets and tuning guides."""

    name: str
    bf16: float
    bandwidth: float
    exponentials: float


CARDS = (
    Card("H100 SXM", 989e12, 3.35e12, 132 * 16 * 1.98e9),
    Card("A100 80GB SXM", 312e12, 2.04e12, 108 * 16 * 1.41e9),
    Card("RTX 4090", 165e12, 1.01e12, 128 * 16 * 2.52e9),
)


@dataclass(frozen=True)
class Work:
    """What one call must do: operations on tensor cores (flops), bytes from and to memory, exponentials."""

    op: str
    shape: str
    flops: float
    bytes: float
    exponentials: float = 0.0

    def floor(self, card: Card) -> tuple[float, str]:
        """The least time in seconds, and what sets it."""
        times = {
            "arithmetic": self.flops / card.bf16,
            "memory": self.bytes / card.bandwidth,
            "exponentials": self.exponentials / card.exponentials,
        }
        bound = max(times, key=lambda name: times[name])
        return times[bound], bound


def works() -> list[Work]:
    """Wan 2.1's 1.3B model at 480x832, 81 frames (32,760 tokens of 1,536, 12 heads of 128), bf16; its VAE's widest
    level, four frames of 480x832 with 96 channels."""
    L, D, N, hidden, latent = 32760, 1536, 12, 8960, 16 * 21 * 60 * 104
    pixels, C = 4 * 480 * 832, 96
    two = 2.0
    tokens = two * L * D
    return [
        Work("patch_embed", "16x21x60x104, patch 1x2x2", 2.0 * L * D * 64, two * latent + tokens),
        Work("unpatchify", "32,760 tokens of 64", 0, 2 * two * latent),
        Work("qk_norm_rope", "32,760 tokens of 1,536", 0, 2 * tokens + 4.0 * L * 128),
        Work("adaln", "32,760 tokens of 1,536", 0, 2 * tokens),
        Work("gate_residual", "32,760 tokens of 1,536", 0, 3 * tokens),
        Work("spacetime_attention", "12 heads of 128, 32,760 tokens", 4.0 * L * L * D, 4 * tokens, 1.0 * L * L * N),
        Work("linear", "1,536 to 8,960", 2.0 * L * D * hidden, tokens + two * L * hidden + two * D * hidden),
        Work("causal_conv3d", "96 to 96 channels, 4x480x832", 54.0 * C * C * pixels, 2 * two * C * pixels),
        Work("norm_silu", "96 channels, 4x480x832", 0, 2 * two * C * pixels),
        Work("sampler_step", "16x21x60x104, UniPC", 0, (2 * two + 5 * 4) * latent),
        Work("noise", "16x21x60x104", 0, 4.0 * latent),
    ]


def main() -> None:
    """Print the table in markdown."""
    print("| op | shape | GFLOP | MB |", " | ".join(card.name for card in CARDS), "|")
    print("|---|---|---|---|" + "---|" * len(CARDS))
    for work in works():
        floors = [f"{1e6 * time:,.0f} us ({bound})" for time, bound in (work.floor(card) for card in CARDS)]
        print(
            f"| `{work.op}` | {work.shape} | {work.flops / 1e9:,.0f} | {work.bytes / 1e6:,.1f} |",
            " | ".join(floors),
            "|",
        )


if __name__ == "__main__":
    main()
