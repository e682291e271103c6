"""How good clips are, by the oracle; and how good the oracle is, by clips whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pysora.worlds.attributes import CLASSES, COLOURS, MOTIONS, SETTINGS, Attributes, sample_attributes
from pysora.worlds.captions import LANGUAGES, full_caption
from pysora.worlds.oracle import Judgement, judge
from pysora.worlds.render import empty, render

FIELDS = ("colour", "setting", "cls", "motion")
_HEADINGS = {"colour": "colour", "setting": "setting", "cls": "class", "motion": "motion", "all": "all four"}
#: What guessing gets right: one of the names, or one of the combinations.
_CHANCE = {
    "colour": 1 / len(COLOURS),
    "setting": 1 / len(SETTINGS),
    "cls": 1 / len(CLASSES),
    "motion": 1 / len(MOTIONS),
    "all": 1 / (len(COLOURS) * len(SETTINGS) * len(CLASSES) * len(MOTIONS)),
}

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Accuracy:
    """Shares of `clips` clips whose colour, setting, class, motion (`by_field`) and all four were judged right."""

    clips: int
    by_field: dict[str, float]
    all_four: float

    def __str__(self) -> str:
        shares = {**self.by_field, "all": self.all_four}
        row = "  ".join(f"{heading} {100 * shares[name]:5.1f} %" for name, heading in _HEADINGS.items())
        return f"{row}  ({self.clips} clips)"


@dataclass(frozen=True)
class Proof:
    """What the oracle says about clips whose truth is known.

    truth: drawn clips against their attributes; shuffled: the same judgements against other clips' attributes.
    empty, noise, frozen: shares judged "none": a setting without a subject has no class, noise nothing at all, a
    repeated frame no motion.
    """

    truth: Accuracy
    shuffled: Accuracy
    empty: float
    noise: float
    frozen: float

    @property
    def holds(self) -> bool:
        """Whether the oracle is fit to judge: 99 % on truth, 95 % "none", and within chance on shuffled prompts."""
        shares = self.shuffled.by_field
        lucky = any(shares[name] > _CHANCE[name] + _luck(_CHANCE[name], self.shuffled.clips) for name in FIELDS)
        right = min(*self.truth.by_field.values(), self.truth.all_four) >= 0.99
        return right and min(self.empty, self.noise, self.frozen) >= 0.95 and not lucky

    def __str__(self) -> str:
        chance = "  ".join(f"{heading} {100 * _CHANCE[name]:5.1f} %" for name, heading in _HEADINGS.items())
        none = f"empty {100 * self.empty:.1f} %, noise {100 * self.noise:.1f} %, frozen {100 * self.frozen:.1f} %"
        rows = [f"truth     {self.truth}", f"shuffled  {self.shuffled}", f"chance    {chance}", f"none      {none}"]
        return "\n".join(rows)


def score(judgements: Sequence[Judgement], attributes: Sequence[Attributes]) -> Accuracy:
    """How often judgements agree with what was asked for. Raises ValueError for none, or for unequal numbers."""
    if not judgements or len(judgements) != len(attributes):
        raise ValueError(f"need as many judgements as attributes, not {len(judgements)} and {len(attributes)}")
    pairs = list(zip(judgements, attributes, strict=True))
    right = np.asarray([[getattr(seen, name) == getattr(asked, name) for name in FIELDS] for seen, asked in pairs])
    by_field = dict(zip(FIELDS, right.mean(0).tolist(), strict=True))
    return Accuracy(len(pairs), by_field, float(right.all(1).mean()))


def prove(n: int = 200, seed: int = 0, through: Callable[[Frames], Frames] | None = None) -> Proof:
    """Put the oracle to the test on `n` drawn clips of each kind; `through` (a VAE, say) changes them first.

    Raises ValueError for n < 2.
    """
    if n < 2:
        raise ValueError(f"need at least 2 clips to prove the oracle on, not {n}")
    rng = np.random.default_rng([seed, 7])
    first = int(rng.integers(1_000_000, 1_000_000_000))
    see = through or (lambda frames: frames)
    asked = [sample_attributes(rng) for _ in range(n)]
    seen, frozen = [], 0
    for index, attributes in enumerate(asked):
        frames = render(attributes, first + index).frames
        seen.append(judge(see(frames)))
        frozen += judge(see(np.repeat(frames[index % len(frames)][None], len(frames), 0))).motion is None
    vacant = [judge(see(empty(SETTINGS[index % len(SETTINGS)], first + n + index))) for index in range(n)]
    noise = [judge(rng.integers(0, 256, (17, 128, 128, 3), np.uint8)) for _ in range(n)]
    return Proof(
        truth=score(seen, asked),
        shuffled=score(seen, [sample_attributes(rng) for _ in range(n)]),
        empty=float(np.mean([judgement.cls is None for judgement in vacant])),
        noise=float(np.mean([judgement == Judgement(None, None, None, None) for judgement in noise])),
        frozen=frozen / n,
    )


def held_out_prompts(n: int = 200, seed: int = 0) -> list[tuple[str, Attributes]]:
    """Prompts that name all four attributes of combinations that training never saw, English and Chinese in turn."""
    rng = np.random.default_rng([seed, 8])
    prompts = []
    for index in range(n):
        attributes = sample_attributes(rng, held_out=True)
        prompts.append((full_caption(attributes, LANGUAGES[index % len(LANGUAGES)], rng).text, attributes))
    return prompts


def _luck(chance: float, clips: int) -> float:
    """Four standard deviations of the share of `clips` lucky guesses."""
    return 4 * float(np.sqrt(chance * (1 - chance) / clips))
