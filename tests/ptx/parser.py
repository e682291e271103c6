"""PTX text to instructions: kernels, parameters, registers, shared and local arrays, module-level data."""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from ptx.dtypes import SIZE, UNSIGNED, Array

ARRAY = r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$.]+)((?:\[\d*\])*)"


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@guard op operands;` with its line in the PTX and, with line information, in the source."""

    index: int
    line: int
    text: str
    op: str
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None  # predicate, whether it is negated
    source: str = ""

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """The opcode and its modifiers."""
        return tuple(self.op.split("."))

    @property
    def type(self) -> str:
        """The last type in the opcode."""
        return self.parts[-1]

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        return f"line {self.line}{source}: `{' '.join(self.text.split())[:160]}`"


@dataclass
class Parameter:
    """A kernel's parameter: a scalar of `type`, or a struct of `size` bytes."""

    name: str
    type: str
    size: int
    is_struct: bool


@dataclass
class Program:
    """One kernel: what it declares and its instructions."""

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    parameter_offsets: dict[str, int] = field(default_factory=dict)  # in the bytes of all of them
    parameter_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)  # byte offsets
    shared_bytes: int = 0
    dynamic_shared: str | None = None
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    data: dict[str, Array] = field(default_factory=dict)  # module-level arrays
    max_threads: int = 1024


@functools.lru_cache(maxsize=4)
def _clean(text: str) -> tuple[str, dict[int, str]]:
    """Return the text without comments and line directives, each line at its place, and the source of each line."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M))
    lines: list[str] = []
    sources: dict[int, str] = {}
    at = ""
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith(".section"):
            break  # debug information
        if found := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            at = f"{files.get(found[1], '?').rsplit('/', 1)[-1]}:{found[2]}"
        sources[number] = at
        lines.append("" if re.match(r"\s*\.(loc|file)\s", line) else line.split("//")[0])
    return "\n".join(lines), sources


def _value(literal: str, size: int) -> int:
    """Return a literal's bits."""
    if literal[:2] in ("0f", "0F") and size == 8:
        return int.from_bytes(struct.pack("<d", struct.unpack(">f", bytes.fromhex(literal[2:]))[0]), "little")
    if literal[:2] in ("0f", "0F", "0d", "0D"):
        return int(literal[2:], 16)
    return int(literal.rstrip("U"), 0) & ((1 << 8 * size) - 1)


def immediate(text: str, size: int) -> int | None:
    """Return the bits of an immediate operand, None if it is something else."""
    return _value(text, size) if text[0].isdigit() or text[0] == "-" else None


def split_operands(text: str) -> tuple[str, ...]:
    """Return what commas outside of brackets separate."""
    found, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            found.append(text[start:i].strip())
            start = i + 1
    return tuple(x for x in (*found, text[start:].strip()) if x)


def elements(operand: str) -> list[str]:
    """Return the registers of a vector operand `{a, b}`, or the one operand."""
    text = operand.strip()
    return [x.strip() for x in text[1:-1].split(",")] if text.startswith("{") else [text]


def _count(dimensions: str) -> int:
    return int(np.prod([int(d) for d in re.findall(r"\d+", dimensions)], dtype=np.int64))


def _module_data(outer: str) -> dict[str, Array]:
    data = {}
    for m in re.finditer(r"\.(?:global|const)\s+" + ARRAY + r"\s*(?:=\s*(\{[^}]*\}|[^;]+))?;", outer):
        _, kind, name, dimensions, initial = m.groups()
        size = SIZE[kind]
        values = [_value(v, size) for v in re.findall(r"-?\w+", initial or "")]
        count = max(_count(dimensions), len(values))
        data[name] = np.array(values + [0] * (count - len(values)), UNSIGNED[size])
    return data


@functools.lru_cache(maxsize=4)
def _kernels(clean: str) -> tuple[dict[str, tuple[str, str, int, int]], str]:
    """Return each kernel's parameters, attributes, and where its body begins and ends; and what is outside of them."""
    kernels, outer, at = {}, "", 0
    for m in re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", clean, re.S):
        depth, brace = 1, re.compile(r"[{}]")
        end = m.end()
        while depth:
            found = brace.search(clean, end)
            if found is None:
                raise ValueError(f"{m[1]}: a brace is not closed")
            depth += 1 if found[0] == "{" else -1
            end = found.end()
        kernels[m[1]] = (m[2], m[3], m.end(), end - 1)
        outer += clean[at : m.start()]
        at = end
    return kernels, outer + clean[at:]


def parse(text: str, name: str | None = None) -> Program:
    """Return the kernel whose name contains `name`, or the first one; ValueError with the names if there is none."""
    clean, sources = _clean(text)
    kernels, outer = _kernels(clean)
    chosen = name if name in kernels else next((k for k in kernels if name is None or name in k), None)
    if chosen is None:
        raise ValueError(f"no kernel is called {name!r}; there are: {', '.join(kernels) or 'none'}")
    parameters, attributes, start, end = kernels[chosen]
    program = Program(chosen, data=_module_data(outer))
    for text_of_one in split_operands(parameters):
        m = re.search(r"\.(\w+)\s+(?:\.ptr\b[\s\w.]*?\s)?([\w$]+)((?:\[\d+\])?)$", text_of_one.strip())
        if m is None:
            raise ValueError(f"{chosen}: no parameter: {text_of_one!r}")
        size = SIZE[m[1]] * (_count(m[3]) if m[3] else 1)
        program.parameters.append(Parameter(m[2], m[1], size, bool(m[3])))
        program.parameter_offsets[m[2]] = program.parameter_bytes
        program.parameter_bytes += -(-size // 16) * 16
    if m := re.search(r"\.(?:req|max)ntid\s+([\d, ]+)", attributes):
        program.max_threads = int(np.prod([int(n) for n in m[1].split(",")]))
    if m := re.search(r"\.extern\s+\.shared\s+" + ARRAY, outer):
        program.dynamic_shared = m[3]
    _declare_shared(program, outer)
    _Body(program, clean, start, end, sources).read()
    used = {name for x in program.instructions for operand in x.operands for name in re.findall(r"[\w$]+", operand)}
    program.data = {name: data for name, data in program.data.items() if name in used}
    return program


def _declare_shared(program: Program, text: str) -> None:
    for m in re.finditer(r"(?<!\.extern)\s\.shared\s+" + ARRAY + r"\s*;", "\n" + text):
        align, kind, name, dimensions = m.groups()
        if not re.search(r"\d", dimensions) and dimensions:
            continue  # extern
        step = int(align or SIZE[kind])
        program.shared[name] = -(-program.shared_bytes // step) * step
        program.shared_bytes = program.shared[name] + SIZE[kind] * _count(dimensions)


class _Body:
    """Reads a kernel's body; registers of inner scopes (inline assembly) get names of their own."""

    def __init__(self, program: Program, text: str, start: int, end: int, sources: dict[int, str]) -> None:
        self.program, self.text, self.at, self.end, self.sources = program, text, start, end, sources
        self.scopes: list[dict[str, str]] = [{}]
        self.opened = 0
        self.line, self.counted = text.count("\n", 0, start) + 1, start

    def read(self) -> None:
        space, label = re.compile(r"\s*"), re.compile(r"([\w$]+):(?!:)")
        while True:
            self.at = space.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at >= self.end:
                return
            char = self.text[self.at]
            if char == "{":
                self.opened += 1
                self.scopes.append({})
                self.at += 1
            elif char == "}":
                self.scopes.pop()
                self.at += 1
            elif found := label.match(self.text, self.at):
                self._label(found[1])
                self.at = found.end()
            else:
                stop = self.text.index(";", self.at)
                self.line += self.text.count("\n", self.counted, self.at)
                self.counted = self.at
                self._statement(self.text[self.at : stop].strip())
                self.at = stop + 1

    def _label(self, name: str) -> None:
        if name in self.program.labels:
            raise ValueError(f"{self.program.name}: label {name} stands twice")
        self.program.labels[name] = len(self.program.instructions)

    def _renamed(self, text: str) -> str:
        if len(self.scopes) == 1:
            return text
        return re.sub(r"%?[A-Za-z_$][\w$]*", lambda m: self._name(m[0]), text)

    def _name(self, token: str) -> str:
        for scope in reversed(self.scopes):
            if token in scope:
                return scope[token]
        return token

    def _statement(self, text: str) -> None:
        program = self.program
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith(".shared"):
            _declare_shared(program, text + ";")
        elif text.startswith(".local"):
            m = re.search(r"\.local\s+" + ARRAY, text)
            assert m is not None, text
            program.local[m[3]] = program.local_bytes
            program.local_bytes += -(-SIZE[m[2]] * _count(m[4]) // 16) * 16
        elif text.startswith(".branchtargets"):
            last = next(reversed(program.labels))
            program.branch_targets[last] = [t.strip() for t in text.removeprefix(".branchtargets").split(",")]
        elif not text.startswith("."):
            self._instruction(text)

    def _registers(self, text: str) -> None:
        m = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        assert m is not None, text
        for item in m[2].split(","):
            many = re.match(r"([%\w$]+)<(\d+)>", item.strip())
            names = [f"{many[1]}{k}" for k in range(int(many[2]))] if many else [item.strip()]
            for name in names:
                own = name
                if len(self.scopes) > 1:
                    own = self.scopes[-1][name] = f"{name}#{self.opened}"
                self.program.registers[own] = m[1]

    def _instruction(self, text: str) -> None:
        guard, rest = None, text
        if m := re.match(r"@(!?)([%\w$]+)\s+", text):
            guard, rest = (self._name(m[2]), bool(m[1])), text[m.end() :]
        m = re.match(r"([a-z][\w.:]*)\s*(.*)$", rest, re.S)
        if m is None:
            raise ValueError(f"{self.program.name}, line {self.line}: no instruction: {text!r}")
        operands = split_operands(self._renamed(m[2].replace("\n", " ")))
        index = len(self.program.instructions)
        source = self.sources.get(self.line, "")
        self.program.instructions.append(Instruction(index, self.line, text, m[1], operands, guard, source))
