"""Plots and the README's table from what `pysora bench --json` wrote.

    python benchmarks/plots.py one.json two.json --out docs/images    roofline, scaling with length, with threads
    python benchmarks/plots.py one.json --markdown                    the table, with machine and date

Several files are taken together: for the scaling with threads, runs with --threads 1, 2, ... Needs `pysora[bench]`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pysora import bench
from pysora.bench import Report, Row

COMPARED = ("pysora", "torch", "diffusers", "zentorch", "openvino", "inductor")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the plots")
    parser.add_argument("--markdown", action="store_true", help="print the table instead")
    options = parser.parse_args(arguments)
    try:
        reports = [bench.read(path) for path in options.reports]
    except (OSError, ValueError) as error:
        print(f"plots: {error}", file=sys.stderr)
        return 2
    if options.markdown:
        print(bench.markdown(reports))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    for name, draw in (("roofline", roofline), ("length", by_length), ("threads", by_threads)):
        figure = draw(reports)
        if figure is None:
            print(f"{name}: these files have no rows for it")
            continue
        path = options.out / f"bench_{name}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        print(path)
    return 0


def roofline(reports: Sequence[Report]) -> Any:
    """Rates over operations per byte, below the ceilings that the same runs measured; None without such rows."""
    rows = [row for row in most_threads(reports) if row.intensity and row.rate and row.ceiling]
    if not rows:
        return None
    figure, axes = axes_of(f"Roofline, {rows[0].threads} threads")
    limits = {kind: statistics.median(row.ceiling for row in of) for kind, of in grouped(rows, ceiling_of).items()}
    reach = [min(row.intensity for row in rows) / 2, max(row.intensity for row in rows) * 2]
    for kind, limit in limits.items():
        if kind == "memory":
            continue
        axes.plot(reach, [limit, limit], color="grey")
        axes.annotate(f"{kind} {limit:.0f} GFLOP/s", (reach[0], limit), va="bottom", fontsize=8)
    if "memory" in limits:
        top = max((limit for kind, limit in limits.items() if kind != "memory"), default=None)
        end = reach[1] if top is None else min(reach[1], top / limits["memory"])
        axes.plot([reach[0], end], [reach[0] * limits["memory"], end * limits["memory"]], color="grey")
    for who, of in grouped(rows, lambda row: row.contender).items():
        flops = [row.rate if row.unit == "GFLOP/s" else row.rate * row.intensity for row in of]
        axes.scatter([row.intensity for row in of], flops, label=who, s=18)
        if who == bench.OURS:
            for row, y in zip(of, flops, strict=True):
                axes.annotate(f"{row.op} {row.dtype}", (row.intensity, y), fontsize=6, va="top")
    axes.set(xscale="log", yscale="log", xlabel="floating-point operations a byte", ylabel="GFLOP/s")
    axes.legend(fontsize=8)
    return figure


def by_length(reports: Sequence[Report]) -> Any:
    """Percent of the ceiling over the number of tokens; None where no shape has two lengths."""
    rows = [row for row in most_threads(reports) if row.length and row.percent and row.contender in COMPARED]
    lines = grouped(rows, lambda row: (row.op, without_tokens(row.case), row.dtype, row.contender))
    points = {
        " ".join(key): [(row.length, row.percent.median) for row in of]
        for key, of in lines.items()
        if len({row.length for row in of}) > 1
    }
    return lines_of("Scaling with length", "tokens", "% of the ceiling", points)


def by_threads(reports: Sequence[Report]) -> Any:
    """Speed over that of the fewest threads; None where no case ran with two numbers of threads."""
    rows = [row for report in reports for row in report.rows if row.contender in (bench.OURS, "torch")]
    points = {}
    for key, of in grouped(rows, lambda row: (row.op, row.case, row.dtype, row.contender)).items():
        times = {threads: mean_time(group) for threads, group in grouped(of, lambda row: row.threads).items()}
        if len(times) > 1:
            base = times[min(times)]
            points[" ".join(key)] = [(threads, base / time) for threads, time in times.items()]
    return lines_of("Scaling with threads", "threads", "times as fast as with the fewest", points)


def lines_of(title: str, xlabel: str, ylabel: str, lines: dict[str, list[tuple[float, float]]]) -> Any:
    """One line for each label; None where there is none."""
    if not lines:
        return None
    figure, axes = axes_of(title)
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", ylim=(0, None))
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def axes_of(title: str) -> tuple[Any, Any]:
    """A figure that needs no display. Raises SystemExit where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("plots: matplotlib is missing: pip install 'pysora[bench]'") from error
    figure = Figure(figsize=(7, 4.5))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def most_threads(reports: Sequence[Report]) -> list[Row]:
    """The rows with the largest number of threads."""
    rows = [row for report in reports for row in report.rows]
    most = max((row.threads for row in rows), default=0)
    return [row for row in rows if row.threads == most]


def mean_time(rows: Sequence[Row]) -> float:
    return statistics.mean(row.milliseconds.median for row in rows)


def ceiling_of(row: Row) -> str:
    return "memory" if row.unit == "GB/s" else row.dtype


def without_tokens(case: str) -> str:
    return re.sub(r"\d+ tokens(, )?", "", case)


def grouped(rows: Sequence[Row], key: Any) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


if __name__ == "__main__":
    sys.exit(main())
