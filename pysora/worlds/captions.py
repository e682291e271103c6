"""Captions of clips: English and Chinese, short and detailed, worded in many ways and always true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pysora.worlds import lexicon as words
from pysora.worlds.attributes import Attributes

LANGUAGES = ("en", "zh")
DETAILS = ("short", "detailed")

#: How often a short caption mentions each attribute, and leaves out where to a subject runs.
_MENTION_SHARES = {"colour": 0.7, "setting": 0.88, "motion": 0.88}
_UNNAMED_DIRECTION = 0.3

_T = TypeVar("_T")


@dataclass(frozen=True)
class Caption:
    """A caption and what it says.

    mentioned: names of the attributes that the text fixes, out of cls, colour, setting and motion. Text that says
    that a subject runs but not where to has "running" there instead of "motion": either direction fits it.
    """

    text: str
    language: str
    mentioned: frozenset[str]


def captions(
    attributes: Attributes, rng: np.random.Generator, language: str | None = None, detail: str | None = None
) -> Caption:
    """A caption in `language` ("en", "zh") and of `detail` ("short", "detailed"), drawn at random where None.

    Short ones leave attributes out at random; detailed ones name all four and describe what else is to be seen.
    Raises ValueError for another language or detail.
    """
    language = _choice(language, LANGUAGES, "language", rng)
    detail = _choice(detail, DETAILS, "detail", rng, weights=(0.75, 0.25))
    if detail == "detailed":
        caption = full_caption(attributes, language, rng)
        text = caption.text.rstrip(".。") + _description(attributes, language, rng)
        return Caption(text, language, caption.mentioned)
    mentioned = {"cls"}
    mentioned |= {name for name, share in _MENTION_SHARES.items() if rng.random() < share}
    if "motion" in mentioned and attributes.motion in words.DIRECTIONS_EN and rng.random() < _UNNAMED_DIRECTION:
        mentioned = mentioned - {"motion"} | {"running"}
    return _caption(attributes, frozenset(mentioned), language, rng)


def full_caption(attributes: Attributes, language: str | None, rng: np.random.Generator) -> Caption:
    """A one-sentence caption that names class, colour, setting and motion."""
    language = _choice(language, LANGUAGES, "language", rng)
    return _caption(attributes, frozenset(("cls", "colour", "setting", "motion")), language, rng)


def _caption(attributes: Attributes, mentioned: frozenset[str], language: str, rng: np.random.Generator) -> Caption:
    text = (_english if language == "en" else _chinese)(attributes, mentioned, rng)
    return Caption(text, language, mentioned)


def _english(a: Attributes, mentioned: frozenset[str], rng: np.random.Generator) -> str:
    noun = _pick(words.NOUNS_EN[a.cls], rng)
    if "colour" in mentioned:
        noun = f"{_pick(words.COLOURS_EN[a.colour], rng)} {noun}"
    noun = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    place = _pick(words.PLACES_EN[a.setting], rng) if "setting" in mentioned else ""
    if not mentioned & {"motion", "running"}:
        text = _join(_pick(("", "", "a video of", "a cartoon of"), rng), noun, place)
        return _sentence(text, rng)
    third, participle, rest = _pick(words.VERBS_EN[_kind(a.motion)][a.cls], rng)
    if "motion" in mentioned and a.motion in words.DIRECTIONS_EN:
        rest = _join(rest, _pick(words.DIRECTIONS_EN[a.motion], rng))
    watches = place and a.motion == "still" and a.setting == "windowsill" and a.cls in words.LIVING
    if watches and rng.random() < 0.5:
        return _sentence(_join(noun, "sits", _pick(words.WATCHING_EN, rng)), rng)
    form = rng.random()
    if form < 0.55:
        text = _join(noun, third, rest, place)
    elif form < 0.7 and place:
        text = _join(place + ",", noun, third, rest)
    elif form < 0.85:
        text = _join(noun, participle, rest, place)
    else:
        text = _join(_pick(("a video of", "a clip of", "a cartoon of"), rng), noun, participle, rest, place)
    return _sentence(text, rng)


def _chinese(a: Attributes, mentioned: frozenset[str], rng: np.random.Generator) -> str:
    bare = _pick(words.NOUNS_ZH[a.cls], rng)
    if "colour" in mentioned:
        bare = f"{_pick(words.COLOURS_ZH[a.colour], rng)}的{bare}"
    noun = f"一{words.MEASURE_ZH[a.cls]}{bare}"
    place = _pick(words.PLACES_ZH[a.setting], rng) if "setting" in mentioned else ""
    end = _pick(("", "", "。"), rng)
    if not mentioned & {"motion", "running"}:
        joined = place.rstrip("，")
        text = _pick((f"{joined}的{bare}", f"{noun}在{joined}", f"{joined}有{noun}"), rng) if place else noun
        return text + end
    opening = _pick(("", "", "", "", "视频中，", "画面里，"), rng)
    if a.motion == "still":
        return opening + _chinese_rest(a, noun, place, rng) + end
    direction = ""
    if "motion" in mentioned and a.motion in words.DIRECTIONS_ZH:
        direction = _pick(words.DIRECTIONS_ZH[a.motion], rng)
    verb = _pick(words.VERBS_ZH[_kind(a.motion)][a.cls], rng).format(to=direction)
    if not place:
        return opening + noun + _pick(("", "在", "正在"), rng) + verb + end
    form = rng.random()
    if form < 0.5:
        return f"{opening}{noun}在{place}{verb}{end}"
    joined = place.rstrip("，")
    if form < 0.75:
        return f"{opening}{joined}，{noun}{_pick(('', '在', '正在'), rng)}{verb}{end}"
    return f"{opening}{joined}的{bare}{_pick(('', '', '在'), rng)}{verb}{end}"


def _chinese_rest(a: Attributes, noun: str, place: str, rng: np.random.Generator) -> str:
    rest = _pick(words.RESTS_ZH[a.cls], rng)
    if not place:
        return f"{noun}{rest}着"
    if a.setting == "windowsill" and a.cls in words.LIVING and rng.random() < 0.5:
        return noun + _pick(words.WATCHING_ZH, rng)
    joined = place.rstrip("，")
    return _pick((f"{noun}{rest}在{joined}", f"{joined}，{noun}{rest}着"), rng)


def _description(a: Attributes, language: str, rng: np.random.Generator) -> str:
    """One to three true sentences on looks, surroundings, course and style, in random order."""
    kind = _kind(a.motion)
    if language == "en":
        facts = [words.LOOKS_EN[a.cls], words.SIGHTS_EN[a.setting], words.COURSES_EN[kind], _pick(words.STYLES_EN, rng)]
    else:
        facts = [words.LOOKS_ZH[a.cls], words.SIGHTS_ZH[a.setting], words.COURSES_ZH[kind], _pick(words.STYLES_ZH, rng)]
    chosen = [facts[i] for i in rng.permutation(len(facts))[: int(rng.integers(1, 4))]]
    if language == "zh":
        return "。" + "。".join(chosen) + "。"
    return ". " + ". ".join(fact[0].upper() + fact[1:] for fact in chosen) + "."


def _kind(motion: str) -> str:
    return motion.split()[0]


def _pick(options: Sequence[_T], rng: np.random.Generator) -> _T:
    return options[int(rng.integers(len(options)))]


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _sentence(text: str, rng: np.random.Generator) -> str:
    """With or without a capital and a full stop."""
    style = rng.random()
    return text if style < 0.5 else text[0].upper() + text[1:] + ("." if style < 0.8 else "")


def _choice(
    value: str | None,
    options: Sequence[str],
    name: str,
    rng: np.random.Generator,
    weights: Sequence[float] | None = None,
) -> str:
    if value is None:
        return str(rng.choice(options, p=weights))
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, not {value!r}")
    return value
