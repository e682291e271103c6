"""Self-test of the proof: the project's kernels with one thing wrong each, which the tests must notice.

    python -m ptx.mutants                 # all of them: what caught each; fails if one survives (make mutants)
    python -m ptx.mutants adaln           # those whose name contains a word

A mutant is a file, a piece of its text that stands there once, and what stands there instead. Its check is the test
that must fail. Every mutant runs in a process of its own, so that nothing of the original kernel is left in a cache.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ptx import compiler
from ptx.compiler import ROOT
from ptx.errors import PTXError

WORKERS = 2


@dataclass(frozen=True)
class Mutant:
    """`old` in `file` becomes `new`; `check` is the test that must fail, as pytest names it."""

    name: str
    file: str
    old: str
    new: str
    check: str

    def text(self) -> str:
        """Return the file's content with the mistake; ValueError if `old` is not there exactly once."""
        content = (ROOT / self.file).read_text()
        if content.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.file} has {content.count(self.old)} times {self.old!r}, not once")
        return content.replace(self.old, self.new)


@dataclass(frozen=True)
class Verdict:
    """What caught a mutant: a test, and the kind of error or the assertion; both empty if nothing did."""

    mutant: str
    test: str
    reason: str

    @property
    def survived(self) -> bool:
        """Whether no test has noticed."""
        return not self.test


class _FirstFailure:
    """A pytest plugin that remembers the first test that failed, and why."""

    test = reason = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Note the outcome of one test."""
        report: Any = yield
        if report.failed and not self.test and call.excinfo is not None:
            error = call.excinfo.value
            self.test = item.nodeid
            kind = error.kind if isinstance(error, PTXError) else getattr(error, "kind", type(error).__name__)
            self.reason = f"{kind}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        return report


def _import_instead(mutant: Mutant) -> None:
    """Import a mutated Triton kernel in the place of the installed one; Triton reads its source from the file."""
    path = Path(tempfile.mkdtemp(prefix="mutant-")) / Path(mutant.file).name
    path.write_text(mutant.text())
    name = f"pysora.kernels.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _run_here(mutant: Mutant) -> Verdict:
    """Run a mutant's check in this process, which is of no use afterwards."""
    seen = _FirstFailure()
    triton = mutant.file.startswith("kernels/")
    if triton:
        _import_instead(mutant)
    else:
        compiler.REPLACED[mutant.file] = mutant.text()
    options = ["-x", "-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "--import-mode=importlib"]
    options += [f"--rootdir={ROOT}", f"-c={ROOT / 'pyproject.toml'}"]
    options += ["-k", "not interpreter"] if triton else []  # that runs the installed kernel, in a process of its own
    code = pytest.main([*options, str(ROOT / mutant.check)], [seen])
    if re.search("nvcc cannot compile|CompilationError", seen.reason):
        raise RuntimeError(f"it does not compile: {seen.reason}")
    if not seen.test and code != pytest.ExitCode.OK:
        raise RuntimeError(f"the check {mutant.check} cannot run: {code!r}")
    return Verdict(mutant.name, seen.test, seen.reason)


def _in_children(mutants: Sequence[Mutant]) -> Iterator[Verdict]:
    """Judge each mutant in a child of this process, some at a time; what all of them import is imported here, once."""
    importlib.import_module("pysora.ops")
    importlib.import_module("pysora.kernels")
    waiting, running = list(mutants), dict[int, tuple[Mutant, Any]]()
    while waiting or running:
        while waiting and len(running) < WORKERS:
            mutant, pipe = waiting.pop(0), os.pipe()
            pid = os.fork()
            if pid == 0:
                _child(mutant, pipe[1])
            os.close(pipe[1])
            running[pid] = mutant, os.fdopen(pipe[0])
        pid, _ = os.wait()
        mutant, stream = running.pop(pid)
        with stream:
            answer = json.loads(stream.read() or '{"test": "", "reason": "the process died"}')
        yield Verdict(mutant.name, **answer)


def _child(mutant: Mutant, pipe: int) -> NoReturn:
    """Run a mutant's check, write the verdict to a pipe, and end."""
    output = os.open(os.devnull, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        verdict = _run_here(mutant)
        answer = {"test": verdict.test, "reason": verdict.reason}
    except Exception as error:
        answer = {"test": "", "reason": str(error)}
    os.write(pipe, json.dumps(answer).encode())
    os._exit(0)


def judge_all(mutants: Sequence[Mutant]) -> list[Verdict]:
    """Judge mutants, in a process that has not run anything else."""
    command = [sys.executable, "-m", "ptx.mutants", "--json", *(m.name for m in mutants)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    run = subprocess.run(command, cwd=ROOT / "tests", env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-3000:])
    return [Verdict(**json.loads(line)) for line in run.stdout.splitlines() if line.startswith("{")]


def main(words: list[str]) -> int:
    """Judge the mutants whose names contain one of the words; print a table; return 1 if one survives."""
    from ptx.mutant_list import MUTANTS

    if words[:1] == ["--json"]:
        for verdict in _in_children([m for m in MUTANTS if m.name in words]):
            print(json.dumps(verdict.__dict__), flush=True)
        return 0
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    survivors = 0
    for verdict in _in_children(chosen):
        survivors += verdict.survived
        caught = f"{verdict.test.rpartition('::')[2]} | {verdict.reason[:110]}"
        print(f"{verdict.mutant:60} {f'SURVIVED {verdict.reason}' if verdict.survived else caught}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
