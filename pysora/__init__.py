"""Text to video with a diffusion transformer over spacetime patches, on hand-written kernels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pysora import ops
    from pysora.checkpoint import CheckpointError
    from pysora.generation import generate
    from pysora.loading import load
    from pysora.media import Video
    from pysora.pipeline import Cancelled, NonFiniteError, Pipeline

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "CheckpointError",
    "NonFiniteError",
    "Pipeline",
    "Video",
    "__version__",
    "generate",
    "load",
    "ops",
]

_HOMES = {
    "Cancelled": "pysora.pipeline",
    "CheckpointError": "pysora.checkpoint",
    "NonFiniteError": "pysora.pipeline",
    "Pipeline": "pysora.pipeline",
    "Video": "pysora.media",
    "generate": "pysora.generation",
    "load": "pysora.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import pysora` stays cheap."""
    if name == "ops":
        return importlib.import_module("pysora.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
