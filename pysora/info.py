"""What runs here: versions, instruction set, devices, and the backend that each op takes."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import pysora
from pysora import ops
from pysora.loading import embedded_path
from pysora.ops import _cpu

PACKAGES = ("torch", "numpy", "safetensors", "transformers", "tokenizers", "av", "pillow")


def gather() -> dict[str, Any]:
    """All facts as plain JSON values."""
    missing = _cpu.unavailable()
    native = _cpu.native()
    return {
        "pysora": pysora.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": None if missing else native.cpu_isa(),
        "instruction_sets": [] if missing else native.cpu_isas(),
        "build": {"missing": missing} if missing else native.build_info(),
        "devices": _devices(),
        "embedded_model": str(embedded_path()) if embedded_path().is_dir() else None,
        "ops": {name: {"backend": (e := ops.explain(name)).backend, "not": e.reasons} for name in ops.OPS},
    }


def text(facts: dict[str, Any]) -> str:
    """The facts for a reader."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    build = ", ".join(f"{key} {value or 'none'}" for key, value in facts["build"].items())
    isas = ", ".join(facts["instruction_sets"]) or "none"
    lines = [
        f"pysora {facts['pysora']}, Python {facts['python']}",
        f"packages         {packages}",
        f"processor        {facts['processor']}, {facts['cores']} cores, {facts['threads']} threads",
        f"instruction set  {facts['instruction_set'] or 'none'} (this processor runs {isas})",
        f"native code      {build}",
        f"devices          {', '.join(facts['devices'])}",
        f"embedded model   {facts['embedded_model'] or 'not installed'}",
        "ops",
    ]
    for name, op in facts["ops"].items():
        lines.append(f"  {name:20} {op['backend']}")
        lines += [f"    not {backend}: {reason}" for backend, reason in op["not"].items()]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _devices() -> list[str]:
    found = ["cpu"]
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        found.append(f"cuda:{i} {torch.cuda.get_device_name(i)}, compute capability {major}.{minor}")
    return found
