"""What a run of the benchmark leaves: JSON, a table for the terminal, a table for a README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pysora import __version__, info
from pysora.bench.rows import OURS, Row
from pysora.bench.timing import Spread

FORMAT = 1
LIBRARIES = ("torch", "diffusers", "zentorch", "openvino")


@dataclass(frozen=True)
class Report:
    """The machine, the time and the rows of a run."""

    machine: dict[str, Any]
    date: str
    versions: dict[str, str]
    size: str
    rows: list[Row]

    @classmethod
    def of(cls, rows: Sequence[Row], size: str, device: str = "cpu") -> Report:
        """The rows with what is true here and now."""
        facts = info.gather()
        machine = {key: facts[key] for key in ("processor", "cores", "threads", "instruction_set")}
        if device != "cpu":
            machine["device"] = torch.cuda.get_device_name(device)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
        versions = {"pysora": __version__, **{name: found[name] for name in LIBRARIES if name in found}}
        return cls(machine, now, versions, size, list(rows))

    def save(self, path: Path) -> None:
        """Write JSON. Raises OSError."""
        path.write_text(self.to_json() + "\n", encoding="utf-8")

    def to_json(self) -> str:
        """The report as text that `read` takes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)


def read(path: Path) -> Report:
    """A report that `save` wrote. Raises OSError, and ValueError where the file is no such report."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError(f"format must be {FORMAT}")
        rows = [_row(row) for row in values.pop("rows")]
        return Report(**values, rows=rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no report of pysora bench: {error}") from error


def table(rows: Sequence[Row]) -> Table:
    """For the terminal: each contender's line below pysora's."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("op", "case", "dtype", "who"):
        made.add_column(name, overflow="fold")
    for name in ("ms", "rate", "% of ceiling", "pysora is faster", "error"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        first = row.contender == OURS
        if first and made.row_count:
            made.add_section()
        made.add_row(*(row.op, row.case, row.dtype) if first else ("", "", ""), *_cells(row))
    return made


def markdown(reports: Sequence[Report]) -> str:
    """For a README: a table for each report, under its machine and date."""
    parts = []
    for report in reports:
        m = report.machine
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        parts.append(
            f"{m['device'] + ', beside ' if 'device' in m else ''}"
            f"{m['processor']}, {m['threads']} of {m['cores']} cores, {m['instruction_set']}; "
            f"{report.date[:10]}; {versions}. Medians; quartiles over the rounds in brackets.\n"
        )
        head = ("op", "case", "dtype", "who", "ms", "rate", "% of ceiling", "pysora is faster", "error")
        parts.append("| " + " | ".join(head) + " |\n|" + "---|" * 4 + "---:|" * 5)
        parts += ["| " + " | ".join((row.op, row.case, row.dtype, *_cells(row))) + " |" for row in report.rows]
        parts.append("")
    return "\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    who = f"{row.contender} ({row.backend})" if row.backend else row.contender
    return (
        who,
        f"{row.milliseconds.median:.4g}",
        "" if row.rate is None else f"{row.rate:.4g} {row.unit}",
        "" if row.percent is None else _spread(row.percent, ".0f"),
        "" if row.ratio is None else _spread(row.ratio, ".2f", "x"),
        "" if row.error is None else f"{row.error:.0e}",
    )


def _spread(spread: Spread, form: str, unit: str = "") -> str:
    return f"{spread.median:{form}}{unit} ({spread.low:{form}}-{spread.high:{form}})"


def _row(values: dict[str, Any]) -> Row:
    spreads = {key: Spread(**value) for key, value in values.items() if isinstance(value, dict)}
    return Row(**{**values, **spreads})
