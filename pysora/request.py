"""What a caller may ask for: checked, completed with the checkpoint's defaults, and snapped to what the model can make.

Everything here is plain arithmetic on plain values, so that a bad request is refused before anything is loaded or run.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pysora.approximation import PRESETS, Approximation, preset

SEEDS = 1 << 32
# Far beyond any machine: larger numbers are typing errors, and would only slow down the arithmetic.
LARGEST = 1 << 20

# The arguments of `generate` that a request is made of, beside the prompt.
OPTIONS = frozenset(
    ("size", "frames", "fps", "steps", "guidance", "shift", "negative_prompt", "seed", "n", "sampler", "preset")
) | {knob.name for knob in fields(Approximation)}

Size = str | tuple[int, int]


@dataclass(frozen=True)
class Defaults:
    """What a checkpoint is best run with; `generation_config.json` in its folder, or Wan's own where there is none."""

    width: int = 832
    height: int = 480
    frames: int = 81
    fps: float = 16.0
    steps: int = 50
    guidance: float = 5.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Defaults:
        """Read a generation_config.json. ValueError on an unknown key or a value out of range."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(unknown)}")
        made = cls(**values)
        for name in ("width", "height", "frames", "steps"):
            _whole(name, getattr(made, name), LARGEST)
        _number("fps", made.fps, 1000)
        _number("guidance", made.guidance, 1000)
        return made


@dataclass(frozen=True)
class Grid:
    """What divides a video: pixels per token along W and H, frames per latent frame after the first."""

    multiple: tuple[int, int]
    temporal: int

    def snap(self, size: tuple[int, int], frames: int) -> tuple[tuple[int, int], int]:
        """The next larger size and number of frames that the model can make."""
        width, height = (-(-side // m) * m for side, m in zip(size, self.multiple, strict=True))
        return (width, height), -(-(frames - 1) // self.temporal) * self.temporal + 1


@dataclass(frozen=True)
class Request:
    """A checked request for B = len(prompts) videos.

    size, frames: exactly what was asked; made_size, made_frames: what the model makes, at least as large.
    prompts: None where embeddings were given. copies: the noise's sample number of each video.
    approximation: the preset with the knobs that were given beside it.
    """

    prompts: tuple[str, ...] | None
    negatives: tuple[str, ...]
    copies: tuple[int, ...]
    size: tuple[int, int]
    made_size: tuple[int, int]
    frames: int
    made_frames: int
    fps: float
    steps: int
    guidance: float
    shift: float
    sampler: str
    seed: int
    approximation: Approximation

    @property
    def batch(self) -> int:
        """B, the number of videos."""
        return len(self.copies)

    def notes(self) -> list[str]:
        """What was made larger than asked and cropped, in words."""
        notes = []
        if self.size != self.made_size:
            asked, made = (f"{w}x{h}" for w, h in (self.size, self.made_size))
            notes.append(f"size {asked} was made at {made} and cropped to its middle")
        if self.frames != self.made_frames:
            notes.append(f"{self.frames} frames were made as {self.made_frames} and cut at the end")
        return notes


def parse_size(size: Size) -> tuple[int, int]:
    """(width, height) from a pair or from text such as "128x96". ValueError or TypeError on anything else."""
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(-?\d{1,9})\s*[xX×*]\s*(-?\d{1,9})\s*", size)
        if match is None:
            raise ValueError(f"size must look like 128x96 (width x height), got {size!r}")
        size = int(match[1]), int(match[2])
    if not isinstance(size, Sequence) or len(size) != 2:
        raise TypeError(f"size must be (width, height) or text such as '128x96', got {size!r}")
    return _whole("width", size[0], LARGEST), _whole("height", size[1], LARGEST)


def check_request(
    prompt: str | Sequence[str] | None,
    *,
    defaults: Defaults,
    grid: Grid,
    sampler: str,
    shift: float,
    options: Mapping[str, Any],
    embedded: int | None = None,
    device: str = "cpu",
) -> Request:
    """Check a request and fill it up.

    sampler, shift: of the checkpoint. options: the other arguments of `generate`; None takes the default.
    embedded: the number of prompts that were given as embeddings. device: the kind that a preset is meant for.
    Raises ValueError or TypeError that name the argument, what was needed and what was seen.
    """
    if unknown := sorted(options.keys() - OPTIONS):
        raise TypeError(f"generate() has no argument {', '.join(unknown)}")
    n = _whole("n", _given(options, "n", 1), 4096)
    prompts = _prompts(prompt, embedded)
    count = len(prompts) if prompts is not None else embedded or 0
    width, height = (defaults.width, defaults.height) if options.get("size") is None else parse_size(options["size"])
    frames = _whole("frames", _given(options, "frames", defaults.frames), LARGEST)
    made_size, made_frames = grid.snap((width, height), frames)
    return Request(
        prompts=None if prompts is None else tuple(p for p in prompts for _ in range(n)),
        negatives=tuple(p for p in _negatives(options.get("negative_prompt"), count) for _ in range(n)),
        copies=tuple(range(n)) * count,
        size=(width, height),
        made_size=made_size,
        frames=frames,
        made_frames=made_frames,
        fps=_number("fps", _given(options, "fps", defaults.fps), 1000),
        steps=_whole("steps", _given(options, "steps", defaults.steps), 1000),
        guidance=_number("guidance", _given(options, "guidance", defaults.guidance), 1000, zero=True),
        shift=_number("shift", _given(options, "shift", shift), 100),
        sampler=_given(options, "sampler", sampler),
        seed=_seed(options.get("seed")),
        approximation=_approximation(options, device),
    )


def _given(options: Mapping[str, Any], name: str, default: Any) -> Any:
    value = options.get(name)
    return default if value is None else value


def _prompts(prompt: str | Sequence[str] | None, embedded: int | None) -> list[str] | None:
    if embedded is not None:
        if prompt is not None:
            raise ValueError("give a prompt or prompt_embeds, not both")
        return None
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if prompts is None or not isinstance(prompts, Sequence) or any(not isinstance(p, str) for p in prompts):
        raise TypeError(f"prompt must be text or a list of texts, got {prompt!r}")
    if not prompts or any(not p.strip() for p in prompts):
        raise ValueError("the prompt is empty: say what the video shows")
    return list(prompts)


def _negatives(negative: Any, count: int) -> list[str]:
    negatives = [negative or ""] * count if negative is None or isinstance(negative, str) else negative
    if not isinstance(negatives, Sequence) or any(not isinstance(p, str) for p in negatives):
        raise TypeError(f"negative_prompt must be text or a list of texts, got {negative!r}")
    if len(negatives) != count:
        raise ValueError(f"negative_prompt must be one text or one for each of {count} prompts, got {len(negatives)}")
    return list(negatives)


def _approximation(options: Mapping[str, Any], device: str) -> Approximation:
    name = _given(options, "preset", "exact")
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    row = preset(name, device)
    return Approximation(
        max_error=_number("max_error", _given(options, "max_error", row.max_error), 1, zero=True),
        guidance_interval=_interval(_given(options, "guidance_interval", row.guidance_interval)),
        int8=_flag("int8", _given(options, "int8", row.int8)),
    )


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _interval(value: Any) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"guidance_interval must be (lowest, highest) noise level, got {value!r}")
    low, high = (_number("guidance_interval", level, 1, zero=True) for level in value)
    if low > high:
        raise ValueError(f"guidance_interval must be (lowest, highest) noise level, got {value!r}")
    return low, high


def _seed(seed: Any) -> int:
    if seed is None:
        return secrets.randbelow(SEEDS)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must lie between 0 and {SEEDS - 1}, got {seed}")
    return seed


def _whole(name: str, value: Any, largest: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    value = value.__index__()
    if not 1 <= value <= largest:
        raise ValueError(f"{name} must lie between 1 and {largest}, got {value}")
    return int(value)


def _number(name: str, value: Any, largest: float, zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (0 <= value <= largest if zero else 0 < value <= largest):
        raise ValueError(f"{name} must lie between 0 and {largest:g}, got {value!r}")
    return float(value)
