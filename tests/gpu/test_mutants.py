"""Self-test of the proof: kernels with one mistake each are caught. All of them: `make mutants`."""

from __future__ import annotations

import re

import pytest
from ptx import unavailable
from ptx.compiler import ROOT
from ptx.mutant_list import MUTANTS
from ptx.mutants import judge_all

# The kinds of mistakes that are made, in kernels that compile fast; what is expected is the start of the reason.
HERE = {
    "adaln: barrier of a row's sum deleted": "race",
    "adaln: one half for all sums": "race",
    "adaln: a warp too many": "uninitialised",
    "adaln: rows past the end": "bounds",
    "adaln: scale without the one": "AssertionError",
    "adaln: sum of squares in bf16": "AssertionError",
    "gate_residual: y by the strides of x": "",
    "gate_residual: product rounded to the dtype": "AssertionError",
    "gate_residual: a step forgotten": "AssertionError",
    "qk_norm_rope: rotated backwards": "AssertionError",
    "qk_norm_rope: one value too many": "bounds",
    "qk_norm_rope: gain forgotten": "AssertionError",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_list_fits_the_kernels(mutant):
    """Each mutant changes text that stands once in its file, and names a test that exists."""
    assert mutant.text() != (ROOT / mutant.file).read_text()
    path, _, name = mutant.check.partition("::")
    name = name.partition("[")[0]
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.M), mutant.check


def test_names_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")
def test_mutants_are_caught():
    """Two processes at a time; a survivor is a missing test."""
    chosen = [m for m in MUTANTS if m.name in HERE]
    assert len(chosen) == len(HERE)
    verdicts = {v.mutant: v for v in judge_all(chosen)}
    assert not [name for name, v in verdicts.items() if v.survived]
    seen = {name: v.reason for name, v in verdicts.items()}
    assert not {name: seen[name] for name, kind in HERE.items() if not seen[name].startswith(kind)}
