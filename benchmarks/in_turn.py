"""Whole runs of pysora and diffusers, each in a process of its own and in turn, with their time and memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("pysora", "diffusers")


def peak() -> float:
    """MiB of this process that were in memory at most; `ru_maxrss` would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def in_turn(script: str, arguments: Sequence[str], repeats: int, libraries: Sequence[str] = LIBRARIES) -> None:
    """Run `script --one LIBRARY arguments` for each library `repeats` times; print the medians of what they say."""
    found: dict[str, list[dict[str, float]]] = {who: [] for who in libraries}
    for i in range(repeats):
        for who in libraries if i % 2 else libraries[::-1]:
            command = [sys.executable, script, "--one", who, *arguments]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[who].append(json.loads(said.splitlines()[-1]))
    print(f"{'':14}" + "".join(f"{who:>12}" for who in libraries) + f"{'ratio':>9}")
    for name in found[libraries[0]][0]:
        values = [statistics.median(run[name] for run in found[who]) for who in libraries]
        print(
            f"{name:14}" + "".join(f"{value:12.2f}" for value in values) + f"{values[0] / max(values[-1], 1e-9):9.2f}"
        )
