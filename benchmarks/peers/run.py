"""pysora beside peers that need a torch of their own: zentorch (AMD's plug-in), OpenVINO.

    python benchmarks/peers/run.py [--dry-run] [--peer zentorch] [--op dit --op spacetime_attention] [--repeats 3]

Each peer gets an environment in .make/peers/ with the torch that it needs, diffusers and this pysora; "pysora" is one
more, with the torch that pysora is tested with. All have one wheel without GPU kernels. `pysora bench` then runs in one
environment after the other, again and again, so that a change of the machine meets all. What is compared is the percent
of the ceiling that each process measured for itself, with the registers' own loop, between its calls. Whoever is ahead
is printed.

stable-diffusion.cpp is not among them: its Python package opens whole published checkpoints and makes images and
videos of them; it has no call for layers of a given shape with random weights, and this script brings no weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".make" / "peers"
OURS = "pysora"
Execute = Callable[[list[str]], None]
DIFFUSERS = ("diffusers==0.42.0", "accelerate>=1")
# What pip is asked for, one after the other until one is found; a CPU build spares gigabytes of CUDA libraries.
CPU_TORCH = (
    ("torch==2.13.0+cpu",),
    ("torch==2.13.0", "--index-url", "https://download.pytorch.org/whl/cpu"),
    ("torch==2.13.0",),
)


@dataclass(frozen=True)
class Environment:
    """What is installed beside pysora, and which contender of `pysora bench` the environment is for."""

    name: str
    torch: tuple[tuple[str, ...], ...]
    packages: tuple[str, ...]

    @property
    def python(self) -> Path:
        return HOME / self.name / "bin" / "python"

    @property
    def compilers(self) -> tuple[str, ...]:
        return () if self.name == OURS else (self.name,)


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(OURS, CPU_TORCH, DIFFUSERS),
        # Its plug-in is linked against the build of torch that PyPI has, CUDA or not.
        Environment("zentorch", (("torch==2.14.*",),), ("zentorch==2.14.0.1", *DIFFUSERS)),
        Environment("openvino", CPU_TORCH, ("openvino==2026.4.*", *DIFFUSERS)),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=[n for n in ENVIRONMENTS if n != OURS], help="default: all")
    parser.add_argument("--op", action="append", help="default: spacetime_attention, linear and dit")
    parser.add_argument("--dtype", action="append", choices=["fp32", "bf16"], help="default: bf16")
    parser.add_argument("--tokens", action="append", type=int, help="default: 1024 and 8192")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each environment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every process's report there, as a list")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    options = parser.parse_args(arguments)
    environments = [ENVIRONMENTS[OURS], *(ENVIRONMENTS[name] for name in options.peer or ENVIRONMENTS if name != OURS)]
    execute = print_command if options.dry_run else run_command
    try:
        wheel = build(execute)
        for environment in environments:
            prepare(environment, wheel, execute)
        reports = measure(environments, options, execute)
    except subprocess.CalledProcessError as error:
        print(f"peers: failed with {error.returncode}: {shlex.join(error.cmd)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("peers: interrupted", file=sys.stderr)
        return 130
    if options.json and reports:
        options.json.write_text(json.dumps([report for _, report in reports], indent=1) + "\n", encoding="utf-8")
    for line in compare(reports):
        print(line)
    return 0


def build(execute: Execute) -> Path:
    """This pysora as a wheel, which all environments get."""
    folder = HOME / "wheel"
    for old in folder.glob("*.whl"):
        old.unlink()
    execute([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
    return next(folder.glob("*.whl"), folder / "pysora.whl")


def prepare(environment: Environment, wheel: Path, execute: Execute) -> None:
    """Make an environment, or reuse it; the wheel is installed anew."""
    if not environment.python.exists():
        execute([sys.executable, "-m", "venv", str(HOME / environment.name)])
        install_first(environment, execute, environment.torch)
        pip(environment, execute, *environment.packages)
    # The torch that is there stays: the peer was built for it.
    pip(environment, execute, str(wheel))
    pip(environment, execute, "--force-reinstall", "--no-deps", str(wheel))


def install_first(environment: Environment, execute: Execute, choices: Sequence[tuple[str, ...]]) -> None:
    """Install the first of several choices that can be had. Raises CalledProcessError where none can."""
    *earlier, last = choices
    if not any(can_install(environment, execute, choice) for choice in earlier):
        pip(environment, execute, *last)


def can_install(environment: Environment, execute: Execute, packages: Sequence[str]) -> bool:
    """Install packages, and return whether they could be had."""
    try:
        pip(environment, execute, *packages)
    except subprocess.CalledProcessError:
        return False
    return True


def pip(environment: Environment, execute: Execute, *packages: str) -> None:
    execute([str(environment.python), "-m", "pip", "install", "--quiet", *packages])


def measure(
    environments: Sequence[Environment], options: argparse.Namespace, execute: Execute
) -> list[tuple[str, dict[str, Any]]]:
    """(environment, report) of each process, the environments in turn: A B C, B C A, ..."""
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.repeats):
            turn = i % len(environments)
            for environment in (*environments[turn:], *environments[:turn]):
                path = Path(folder) / f"{environment.name}-{i}.json"
                execute(command(environment, options, path))
                if path.exists():
                    reports.append((environment.name, json.loads(path.read_text(encoding="utf-8"))))
    return reports


def command(environment: Environment, options: argparse.Namespace, path: Path) -> list[str]:
    """`pysora bench` in an environment."""
    made = [str(environment.python.with_name("pysora")), "bench"]
    made += options.op or ["spacetime_attention", "linear", "dit"]
    for name, values in (
        ("--dtype", options.dtype or ["bf16"]),
        ("--tokens", options.tokens or [1024, 8192]),
        ("--peer", environment.compilers),
    ):
        made += [text for value in values for text in (name, str(value))]
    return [*made, "--threads", str(options.threads), "--json", str(path)]


def compare(reports: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """A line for each case: percent of the ceiling of pysora and of each peer, both in its own environment, who wins.

    Where the ranges over the repeats overlap they are level.
    """
    found: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for environment, report in reports:
        for row in report["rows"]:
            if row["percent"] is not None and row["contender"] == environment:
                found[row["op"], row["case"], row["dtype"]][environment].append(row["percent"]["median"])
    lines = []
    for case, percents in found.items():
        ranked = sorted(percents, key=lambda name: -statistics.median(percents[name]))
        texts = [f"{name} {statistics.median(p):.0f}% ({min(p):.0f}-{max(p):.0f})" for name, p in percents.items()]
        level = len(ranked) > 1 and min(percents[ranked[0]]) <= max(percents[ranked[1]])
        verdict = f"{ranked[0]} and {ranked[1]} are level" if level else f"{ranked[0]} wins"
        lines.append(
            f"{' '.join(case)}: {', '.join(texts)}: {verdict if len(ranked) > 1 else 'nobody to compare with'}"
        )
    return lines


def run_command(command: list[str]) -> None:
    print("+", shlex.join(command), flush=True)
    # Neither this checkout's sources nor the user's own packages may be found before the environment's.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONNOUSERSITE": "1", "PYSORA_CUDA": "OFF"}
    subprocess.run(command, check=True, cwd=HOME if HOME.is_dir() else ROOT, env=environment)


def print_command(command: list[str]) -> None:
    print(shlex.join(command))


if __name__ == "__main__":
    sys.exit(main())
