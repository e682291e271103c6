"""CUDA C++ to PTX and to cubins, cached by the content of everything that goes in."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "ptx"  # ignored by git, removed by `make clean`
FLAGS = ("-std=c++17", "-O3")
REPLACED: dict[str, str] = {}  # files, relative to the repository, that have another content: a mutant's
NO_COMPILER = "no CUDA compiler: nvcc is not on the PATH, and PyPI's nvidia-cuda-nvcc is not installed"


@functools.cache
def nvcc() -> str | None:
    """Return the CUDA compiler: on the PATH, under CUDA_HOME, or from PyPI's nvidia-cuda-nvcc; None without one."""
    if found := shutil.which("nvcc"):
        return found
    homes = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        homes += [*sorted(Path(place).glob("cu[0-9]*"), reverse=True), Path(place, "cuda_nvcc")]
    return next((str(home / "bin" / "nvcc") for home in homes if (home / "bin" / "nvcc").is_file()), None)


def unavailable() -> str | None:
    """Return why nothing can be compiled here, or None."""
    return None if nvcc() else NO_COMPILER


@functools.cache
def _version() -> str:
    return subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True, check=True).stdout


def _headers() -> bytes:
    """Return the content of every header that a kernel of this project may include."""
    paths = [p for folder in ("csrc/cuda", "csrc/include") for p in sorted((ROOT / folder).rglob("*.h"))]
    return b"\0".join(str(p.relative_to(ROOT)).encode() + b"\0" + _content(p).encode() for p in paths)


def _content(path: Path) -> str:
    """Return what a file holds, or what REPLACED says."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
    return REPLACED.get(name) or path.read_text()


def compile(
    source: str | Path,
    *instantiations: str,
    arch: str = "compute_80",
    output: str = "ptx",
    flags: Sequence[str] = (),
    text: str | None = None,
) -> str:
    """Return the PTX of a CUDA source; with `output="cubin"` the path of the cubin.

    source: a file, relative to the repository; instantiations: lines of C++ added at its end, such as
    `template __global__ void kernel<64>(Params);`; arch: nvcc's -arch; flags: more flags for nvcc;
    text: what stands in the file instead of its content (a mutant). What was compiled before comes from the cache.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError(NO_COMPILER)
    path = ROOT / source
    whole = "\n".join([_content(path) if text is None else text, *instantiations, ""])
    key = hashlib.sha256()
    for part in (_version(), path.name, whole, arch, output, *FLAGS, *flags):
        key.update(part.encode() + b"\0")
    key.update(_headers())
    made = CACHE / f"{path.stem}-{arch}-{key.hexdigest()[:20]}.{output}"
    if not made.exists():
        own = made.with_suffix(f".{os.getpid()}")  # a folder of this process, so that the source keeps its name
        own.mkdir(parents=True, exist_ok=True)
        (own / path.name).write_text(whole)
        for header in (ROOT / "csrc/cuda").glob("*.h") if REPLACED else ():
            (own / header.name).write_text(_content(header))
        folders = [path.parent, ROOT / "csrc" / "cuda", ROOT / "csrc" / "include"]
        lines = ["-lineinfo"] if output == "ptx" else []
        command = [compiler, *FLAGS, *lines, *flags, f"-arch={arch}", f"-{output}", *(f"-I{f}" for f in folders)]
        run = subprocess.run(
            [*command, path.name, "-o", made.name], cwd=own, capture_output=True, text=True, check=False
        )
        if run.returncode == 0:
            (own / made.name).rename(made)
        shutil.rmtree(own)
        if run.returncode:
            raise RuntimeError(f"nvcc cannot compile {source} for {arch}:\n{run.stderr}")
    return str(made) if output == "cubin" else made.read_text()
