"""What a generation may leave out for speed: a table of knobs, its presets, and the account of what was left out.

Nothing is left out unless it is asked for. docs/fast.md says what each knob does, and how far the estimate can be
trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Approximation:
    """The knobs, each a field whose default is exact.

    max_error: 0 to 1. The transformer's output is reused over steps in which it is estimated to change by at most this
        part of itself; 0 computes every step.
    guidance_interval: (lowest, highest) noise level, 0 (clean) to 1 (noise), where the negative prompt counts; outside
        of it the transformer runs for the prompt alone.
    int8: whether the transformer's blocks multiply in 8-bit integers: linear layers, and queries by many keys.
    """

    max_error: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    int8: bool = False

    def guides(self, sigma: float) -> bool:
        """Whether there is guidance at a noise level."""
        lowest, highest = self.guidance_interval
        return lowest <= sigma <= highest


EXACT = Approximation()
FAST = Approximation(max_error=0.25, int8=True)
PRESETS = {"exact": EXACT, "fast": FAST}


def preset(name: str, device: str) -> Approximation:
    """The row of a preset (KeyError where there is none) on a kind of device, "cpu" or "cuda".

    Its products in 8 bits are for CPUs, since there are no kernels for them elsewhere, and not for those with a matrix
    unit, where the embedded model's exact ones are as fast.
    """
    row = PRESETS[name]
    return replace(row, int8=row.int8 and device == "cpu" and not has_matrix_unit())


def has_matrix_unit() -> bool:
    """Whether the CPU's kernels multiply in a matrix unit (AMX)."""
    import torch  # not before it is needed: a request is read without it

    from pysora.ops._cpu import matrix_unit

    return matrix_unit(torch.bfloat16)


@dataclass(frozen=True)
class Account:
    """What was left out of one video's run.

    steps_computed, steps_reused: how many steps ran the transformer, and how many reused its output.
    guidance_skipped: how many of the computed steps left out the guidance that was asked for.
    calls, calls_exact: passes through the transformer, and how many there are when nothing is left out.
    estimated_error: of the latents, |approximate - exact| / |exact| (Euclidean norms); 0 where nothing was left out.
    """

    steps_computed: int
    steps_reused: int
    guidance_skipped: int
    calls: int
    calls_exact: int
    estimated_error: float

    def to_dict(self, knobs: Approximation) -> dict[str, Any]:
        """The knobs and the account as plain JSON values: `Video.meta["approximation"]`."""
        return {**asdict(knobs), "guidance_interval": list(knobs.guidance_interval), **asdict(self)}


def summary(accounts: Sequence[Mapping[str, Any]]) -> str:
    """One line about all videos of a call, from their `meta["approximation"]`."""
    total = {name: sum(account[name] for account in accounts) for name in _COUNTS}
    steps = total["steps_computed"] + total["steps_reused"]
    rounded = "products in 8 bits; " if accounts[0]["int8"] else ""
    error = max(account["estimated_error"] for account in accounts)
    return (
        f"{rounded}left out: {total['steps_reused']} of {steps} steps, "
        f"guidance in {total['guidance_skipped']} of the others, "
        f"{1 - total['calls'] / total['calls_exact']:.0%} of the transformer's calls; estimated error {error:.1%}"
    )


_COUNTS = ("steps_computed", "steps_reused", "guidance_skipped", "calls", "calls_exact")
