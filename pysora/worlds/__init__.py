"""The small drawn world that the embedded model knows: clips with captions and exact truth, and a judge of clips."""

from pysora.worlds.attributes import (
    CLASSES,
    COLOURS,
    MOTIONS,
    PALETTE,
    SETTINGS,
    Attributes,
    all_attributes,
    sample_attributes,
)
from pysora.worlds.captions import LANGUAGES, Caption, captions, full_caption
from pysora.worlds.render import Clip, Truth, empty, render

__all__ = [
    "CLASSES",
    "COLOURS",
    "LANGUAGES",
    "MOTIONS",
    "PALETTE",
    "SETTINGS",
    "Attributes",
    "Caption",
    "Clip",
    "Truth",
    "all_attributes",
    "captions",
    "empty",
    "full_caption",
    "render",
    "sample_attributes",
]
