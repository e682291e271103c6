"""What a clip of the drawn world is about: its vocabulary, one combination of it, and which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

CLASSES = ("cat", "dog", "ball", "cube", "car", "bird", "boat", "star")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SETTINGS = ("grass", "snow", "beach", "city", "windowsill", "room")
MOTIONS = ("still", "runs left", "runs right", "bounces", "falls", "circles")

#: The colour of a subject's body, 8-bit RGB.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 46),
    "orange": (246, 134, 30),
    "yellow": (250, 214, 52),
    "green": (38, 150, 78),
    "blue": (44, 104, 226),
    "purple": (128, 62, 184),
    "pink": (246, 138, 186),
    "white": (244, 245, 248),
}

_HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class Attributes:
    """One subject of a class and colour, in a setting, with a motion; each name from the tuples above.

    Raises ValueError for a name that is not in the vocabulary.
    """

    cls: str
    colour: str
    setting: str
    motion: str

    def __post_init__(self) -> None:
        vocabulary = {"cls": CLASSES, "colour": COLOURS, "setting": SETTINGS, "motion": MOTIONS}
        for field, names in vocabulary.items():
            if getattr(self, field) not in names:
                raise ValueError(f"{field} must be one of {', '.join(names)}, not {getattr(self, field)!r}")

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination (15 % of all, by a hash that no seed or version changes)."""
        digest = hashlib.sha256("/".join((self.cls, self.colour, self.setting, self.motion)).encode()).digest()
        return int.from_bytes(digest[:8], "big") < _HELD_OUT_SHARE * 2**64

    @property
    def indices(self) -> tuple[int, int, int, int]:
        """Positions of class, colour, setting and motion in their tuples."""
        return (
            CLASSES.index(self.cls),
            COLOURS.index(self.colour),
            SETTINGS.index(self.setting),
            MOTIONS.index(self.motion),
        )


def all_attributes() -> Iterator[Attributes]:
    """Every combination once, in the order of the tuples."""
    for names in product(CLASSES, COLOURS, SETTINGS, MOTIONS):
        yield Attributes(*names)


def sample_attributes(rng: np.random.Generator, held_out: bool | None = None) -> Attributes:
    """A combination drawn evenly: any (None), only held-out ones (True) or only the trained ones (False)."""
    while True:
        names = [str(options[rng.integers(len(options))]) for options in (CLASSES, COLOURS, SETTINGS, MOTIONS)]
        attributes = Attributes(*names)
        if held_out is None or attributes.held_out is held_out:
            return attributes
