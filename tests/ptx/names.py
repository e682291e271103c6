"""Mangled kernel names, readable: `spacetime_attention_kernel<bf16, 64, false>`."""

from __future__ import annotations

import functools
import re

BUILTIN = {"f": "float", "d": "double", "i": "int", "j": "unsigned", "l": "long", "m": "unsigned long", "b": "bool"}
BUILTIN |= {"s": "short", "t": "unsigned short", "c": "char", "h": "unsigned char", "a": "signed char", "v": "void"}
OWN = {"__nv_bfloat16": "bf16", "__half": "f16", "float": "f32"}


class _Reader:
    """Reads the part of the Itanium mangling that kernels use; ValueError for the rest."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def take(self, pattern: str) -> re.Match[str] | None:
        found = re.compile(pattern).match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def identifier(self) -> str:
        length = self.take(r"\d+")
        if length is None:
            raise ValueError(self.text)
        name = self.text[self.at : self.at + int(length[0])]
        self.at += len(name)
        return name

    def name(self) -> str:
        """A name, the last part of a nested one, with its template's arguments."""
        nested = self.take("N") is not None
        name = ""
        while True:
            name = self.identifier() + self.arguments()
            if not nested or self.take("E"):
                return name

    def arguments(self) -> str:
        if not self.take("I"):
            return ""
        found = []
        while not self.take("E"):
            found.append(self.argument())
        return f"<{', '.join(found)}>"

    def argument(self) -> str:
        if literal := self.take(r"L(\w)(n?)(\d+)E"):
            if literal[1] == "b":
                return "true" if literal[3] == "1" else "false"
            return ("-" if literal[2] else "") + literal[3]
        if enumerator := self.take(r"LN?"):
            name = self.name() if enumerator[0] == "L" else self._nested_tail()
            number = self.take(r"(\d+)E")
            return f"{name}({number[1]})" if number else name
        if self.take("J"):
            found = []
            while not self.take("E"):
                found.append(self.argument())
            return ", ".join(found)
        if self.text[self.at : self.at + 1] in BUILTIN:
            kind = BUILTIN[self.text[self.at]]
            self.at += 1
        else:
            kind = self.name()
        return OWN.get(kind, kind)

    def _nested_tail(self) -> str:
        name = ""
        while not self.take("E"):
            if self.take(r"S\w*_|S\w"):
                continue
            name = self.identifier() + self.arguments()
        return name


@functools.cache
def readable(mangled: str) -> str:
    """Return a kernel's name with its template arguments, without namespaces and parameters."""
    reader = _Reader(mangled)
    if not reader.take("_Z"):
        return mangled
    try:
        return reader.name()
    except (ValueError, IndexError):
        return mangled
