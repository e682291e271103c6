"""Text to video with a diffusion transformer over spacetime patches."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Video", "__version__", "generate", "load", "ops"]

_HOMES = {"Video": "pysora.media", "generate": "pysora.pipeline", "load": "pysora.pipeline"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import pysora` stays cheap."""
    if name == "ops":
        return importlib.import_module("pysora.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
