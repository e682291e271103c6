"""The benchmark: its ceilings, its timing, that every case runs, what it writes, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pysora import _C, bench, cli, ops
from pysora.bench import timing
from pysora.bench.case import Case, error
from pysora.bench.ceiling import Ceilings
from pysora.bench.rows import Row, measure
from pysora.bench.timing import Spread, interleave

pytestmark = pytest.mark.usefixtures("one_thread")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = Ceilings(1e-5, 1 << 14)


def script(path: Path) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for the names in their annotations
    spec.loader.exec_module(module)
    return module


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


@pytest.fixture(params=_C.cpu_isas())
def isa(request: pytest.FixtureRequest) -> Any:
    before = _C.cpu_isa()
    _C.use_cpu_isa(request.param)
    yield request.param
    _C.use_cpu_isa(before)


def test_the_loops_count_their_work(isa: str) -> None:
    """12 chains of fused multiply-adds in vectors of 4, 8 or 16; `vdpbf16ps` adds two products a lane, and `tdpbf16ps`
    32 to each of 16x16 sums, of which there are 6."""
    lanes = {"baseline": 4, "avx2": 8}.get(isa, 16)
    rounds, tasks = 5, 8 * 2
    fp32, bf16 = (_C.ceiling_flops(dtype, rounds, 2) for dtype in (False, True))
    assert fp32 == tasks * rounds * 12 * lanes * 2
    assert bf16 == {"avx512_bf16": 2 * fp32, "amx_bf16": tasks * rounds * 6 * 16 * 16 * 32 * 2}.get(isa, fp32)


def test_the_triad_reads_and_writes_every_value(isa: str) -> None:
    n = (1 << 16) + 48  # a second task, which ends early
    a, b, c = torch.full((n,), torch.nan), torch.randn(n), torch.randn(n)
    assert _C.ceiling_triad(a, b, c, 2) == 3 * 4 * n
    torch.testing.assert_close(a, b + 3 * c)


def test_the_loops_refuse() -> None:
    a = torch.zeros(64)
    with pytest.raises(ValueError, match="rounds: need at least 1"):
        _C.ceiling_flops(False, 0, 1)
    with pytest.raises(ValueError, match=r"a: .*a multiple of 16 values.*24"):
        _C.ceiling_triad(a[:24], a[:24], a[:24], 1)
    with pytest.raises(ValueError, match=r"a: .*aligned to 64 bytes"):
        _C.ceiling_triad(a[1:33], a[:32], a[:32], 1)
    with pytest.raises(ValueError, match="b: "):
        _C.ceiling_triad(a, a[:32], a, 1)


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    order: list[tuple[str, int]] = []
    calls = {name: lambda i, name=name: order.append((name, i)) for name in "abc"}
    times = interleave(calls, 0.0, least_rounds=3)
    assert order == [(name, i) for i, names in enumerate(("abc", "bca", "cab")) for name in names]
    assert times == {name: [1.0] * 3 for name in "abc"}


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_every_op_and_model_has_cases_and_a_benchmark() -> None:
    assert set(bench.CASES) == set(ops.OPS) | {"dit", "vae", "generate"}
    for size in ("full", "quick", "tiny"):
        assert {case.op for case in bench.cases(size=size)} == set(bench.CASES)


@pytest.mark.parametrize("name", [name for name in bench.CASES if name != "generate"])
def test_a_case_runs(name: str) -> None:
    """`generate` runs among the benchmarks: it loads the embedded model several times."""
    dtypes = ("fp32", "bf16") if name in ops.OPS else ("fp32",)
    for case in bench.cases([name], dtypes, "tiny"):
        rows = {row.contender: row for row in measure(case, TINY, 0.0, least_rounds=2)}
        assert list(rows) == ["pysora", *case.rivals] and len(rows) >= 2
        for row in rows.values():
            assert row.rounds == 2 and row.milliseconds.median > 0 and row.threads == 1
            assert row.rate is not None and row.percent is not None and row.percent.median > 0
            limit = 1e-4 if row.dtype == "fp32" else 0.05
            limit = case.allowed if row.contender == bench.OURS and case.allowed else limit
            assert row.error is None if row.contender in case.unlike else row.error < limit
        assert rows["pysora"].ratio is None
        assert all(rows[rival].ratio is not None for rival in case.rivals)


def constant(value: float, plain: float = 1.0) -> Case:
    """A case whose results are constants; the truth is 1."""
    return Case(
        "made",
        "one value",
        "fp32",
        draw=lambda draw: (draw(1),),
        ours=lambda x: torch.tensor([value]),
        rivals={"torch": lambda x: torch.tensor([plain])},
        exact=lambda x: torch.ones(1, dtype=x.dtype),
    )


def test_a_wrong_kernel_gets_no_time() -> None:
    with pytest.raises(ArithmeticError, match=r"made \(one value, fp32\): error 5\.0e-01, allowed .*no time"):
        measure(constant(1.5), TINY, 0.0)
    with pytest.raises(ArithmeticError, match="error inf"):
        measure(constant(float("nan")), TINY, 0.0)
    rows = measure(constant(1.015, plain=1.01), TINY, 0.0)
    assert [round(row.error, 3) for row in rows if row.error is not None] == [0.015, 0.01]


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is ten times slower for one round changes times, and no ratio."""
    times = {"pysora": [1.0, 10.0, 1.0], "torch": [2.0, 20.0, 2.0]}
    monkeypatch.setattr("pysora.bench.rows.interleave", lambda *_: times)
    ours, theirs = measure(constant(1.0), TINY, 0.0)
    assert theirs.ratio == Spread(2.0, 2.0, 2.0)
    assert ours.milliseconds == Spread(1000.0, 1000.0, 5500.0)


def test_an_error_is_relative_to_the_largest_value() -> None:
    exact = [torch.tensor([100.0, -200.0], dtype=torch.float64), torch.zeros(0, dtype=torch.float64)]
    assert error([torch.tensor([101.0, -200.0]), torch.zeros(0)], exact) == pytest.approx(0.005)


def test_lengths_and_threads_are_the_callers() -> None:
    assert [case.length for case in bench.cases(["dit"], ["fp32"], "tiny", [16, 64])] == [16, 64]
    before = torch.get_num_threads()
    with bench.using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_json_and_table(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    result = run("unpatchify", "gate_residual", "--quick", "--seconds", 0.01, "--threads", 1, "--json", path)
    assert result.exit_code == 0, result.output
    assert "gate_residual" in result.stdout and "% of ceiling" in result.stdout and str(path) in result.stdout
    report = json.loads(path.read_text(encoding="utf-8"))
    assert {"format", "machine", "date", "versions", "size", "rows"} == set(report)
    assert report["machine"]["threads"] == 1 and report["machine"]["instruction_set"] == _C.cpu_isa()
    assert {(row["op"], row["dtype"], row["contender"]) for row in report["rows"]} == {
        (op, dtype, who)
        for op in ("unpatchify", "gate_residual")
        for dtype in ("fp32", "bf16")
        for who in ("pysora", "torch")
    }
    assert all(set(row["percent"]) == {"median", "low", "high"} for row in report["rows"])
    read = bench.read(path)
    assert read.to_json() == path.read_text(encoding="utf-8").strip()
    text = bench.markdown([read])
    assert report["date"][:10] in text and report["machine"]["processor"] in text
    assert text.count("\n| ") == 1 + len(report["rows"])


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in ("{}", "[]", "nothing", '{"format": 1, "rows": [{}]}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="is no report"):
            bench.read(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "ops must be among patch_embed"),
        (["noise", "--dtype", "int8"], "dtype must be among fp32, bf16"),
        (["noise", "--seconds", "0"], "seconds must lie between"),
        (["noise", "--threads", "0"], "threads must be at least 1"),
        (["dit", "--tokens", "17"], "tokens must be a multiple of 4"),
        (["noise", "--peer", "abacus"], "peers must be among"),
        (["noise", "--json", "nowhere/bench.json"], "there is no folder"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_refusals(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_an_interrupt_shows_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(case: Case, *_: Any) -> list[Row]:
        if case.op == "noise":
            raise KeyboardInterrupt
        return measure(case, TINY, 0.0, least_rounds=1)

    monkeypatch.setattr("pysora.bench.measure", interrupted)
    result = run("unpatchify", "noise", "--quick", "--dtype", "fp32")
    assert result.exit_code == 130
    assert "unpatchify" in result.stdout and "interrupted" in result.stderr


def row(op: str, who: str, length: int, threads: int, unit: str = "GFLOP/s") -> Row:
    spread = Spread(50.0, 40.0, 60.0)
    return Row(
        op=op,
        case=f"{length} tokens, 2 heads of 64",
        dtype="bf16",
        contender=who,
        backend=None,
        threads=threads,
        length=length,
        rounds=5,
        milliseconds=Spread(10.0 / threads, 9.0, 11.0),
        first=12.0,
        intensity=float(length),
        unit=unit,
        rate=100.0,
        ceiling=200.0,
        percent=spread,
        ratio=None if who == "pysora" else Spread(2.0, 1.9, 2.1),
        error=1e-3,
        against="float64",
    )


def test_plots_and_markdown_from_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plots = script(BENCHMARKS / "plots.py")
    paths = []
    for threads in (1, 2):
        rows = [row("spacetime_attention", who, L, threads) for who in ("pysora", "torch") for L in (1024, 4096)]
        rows.append(row("adaln", "pysora", 64, threads, unit="GB/s"))
        paths.append(tmp_path / f"{threads}.json")
        bench.Report.of(rows, "full").save(paths[-1])
    assert plots.main([*map(str, paths), "--out", str(tmp_path / "plots")]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.split()]
    assert names == ["bench_roofline.png", "bench_length.png", "bench_threads.png"]
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert plots.main([str(paths[0]), "--markdown"]) == 0
    assert "| spacetime_attention | 1024 tokens, 2 heads of 64 | bf16 | torch |" in capsys.readouterr().out
    assert plots.main([str(tmp_path / "absent.json")]) == 2


def test_peers_alternate_and_the_winner_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    peers = script(BENCHMARKS / "peers" / "run.py")
    assert peers.main(["--dry-run", "--peer", "zentorch", "--repeats", "2", "--op", "dit", "--threads", "2"]) == 0
    runs = [line for line in capsys.readouterr().out.splitlines() if " bench dit " in line]
    assert ["--peer zentorch" in line for line in runs] == [False, True, True, False]

    def report(who: str, percent: float) -> tuple[str, dict[str, Any]]:
        spread = {"median": percent, "low": percent, "high": percent}
        one = {"op": "dit", "case": "1024 tokens", "dtype": "bf16", "percent": spread}
        return who, {"rows": [{**one, "contender": who}, {**one, "contender": "torch", "percent": None}]}

    far = [report("pysora", 70), report("zentorch", 60), report("pysora", 72), report("zentorch", 62)]
    near = [report("pysora", 70), report("zentorch", 60), report("pysora", 72), report("zentorch", 71)]
    assert peers.compare(far) == ["dit 1024 tokens bf16: pysora 71% (70-72), zentorch 61% (60-62): pysora wins"]
    assert peers.compare(near)[0].endswith("pysora and zentorch are level")
