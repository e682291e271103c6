"""The small drawn world that the embedded model knows: clips with captions and exact truth, and a judge of clips."""

from pysora.worlds.attributes import CLASSES, COLOURS, MOTIONS, PALETTE, SETTINGS, Attributes, all_attributes
from pysora.worlds.attributes import sample_attributes
from pysora.worlds.render import Clip, Truth, empty, render

__all__ = [
    "CLASSES", "COLOURS", "MOTIONS", "PALETTE", "SETTINGS", "Attributes", "Clip", "Truth", "all_attributes", "empty",
    "render", "sample_attributes",
]  # fmt: skip
