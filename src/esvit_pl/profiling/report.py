"""Results of a benchmark as a table to read and to paste, and as JSON.

A row is a NamedTuple. The ends of its fields' names are their units: ``_seconds``, ``_bytes``, ``ratio``, ``error``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
UNITS: dict[str, Callable[[Any], str]] = {
    "seconds": lambda x: f"{x:.1f} s" if x >= 10 else f"{1000 * x:.0f} ms" if x >= 0.01 else f"{1000 * x:.2g} ms",
    "bytes": lambda x: f"{x / MIB:.0f} MiB",
    "ratio": lambda x: f"{x:.2f}",
    "error": lambda x: f"{x:.0e}",
    "per_second": lambda x: f"{x:.0f}" if x >= 100 else f"{x:.3g}",
    "share": lambda x: f"{100 * x:.0f} %",
    "launches": lambda x: f"{x:.0f}",
    "parameters": lambda x: f"{x / 1e6:.1f} M",
    "flops": lambda x: f"{x / 1e9:.2f} G",
    "operations": lambda x: f"{x / 1e12:.2f} T",
}


@dataclass
class Report:
    """One benchmark on one machine."""

    benchmark: str
    what: str
    """Sizes and conditions."""
    machine: Mapping[str, Any]
    rows: Iterable[Any]
    """NamedTuples of one kind; may still be measured while they are read."""

    def title(self) -> str:
        return f"{self.benchmark}: {self.what}\n{as_words(self.machine)}"

    def finished(self) -> Report:
        """Itself, with all rows measured."""
        self.rows = list(self.rows)
        return self

    def table(self) -> str:
        return as_markdown(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = [row._asdict() for row in self.rows]
        return {"benchmark": self.benchmark, "what": self.what, "machine": dict(self.machine), "rows": rows}


def as_markdown(rows: Iterable[Any]) -> str:
    """A table with a column for each field; fields that are None in every row are left out. No rows make no table."""
    rows = list(rows)
    if not rows:
        return "no rows"
    fields = [name for name in rows[0]._fields if any(getattr(row, name) is not None for row in rows)]
    cells = [
        [heading(name) for name in fields],
        *([shown(name, getattr(row, name)) for name in fields] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def heading(field: str) -> str:
    """A field's name in words; its cells show the units."""
    words = field.removesuffix("_seconds").replace("_per_second", " / s").replace("_", " ")
    if words.endswith(" bytes"):
        words = f"memory, {words.removesuffix(' bytes')}"
    for short, long in (("bytes", "memory"), ("straight", "straightforward"), ("our", "ours")):
        words = re.sub(rf"\b{short}\b", long, words)
    return words


def shown(field: str, value: Any) -> str:
    """A value in the units that its field's name says."""
    if value is None:
        return ""
    unit = next((unit for unit in UNITS if field.endswith(unit)), None)
    return str(value) if unit is None or isinstance(value, str) else UNITS[unit](value)


def as_words(machine: Mapping[str, Any]) -> str:
    """``AMD EPYC, 2 threads, torch 2.14.1``"""

    def word(name: str, value: Any) -> str:
        if name in ("cpu", "gpu"):
            return str(value)
        if isinstance(value, int):
            return f"{value} {name[:-1] if value == 1 else name}"
        return f"{name} {value}"

    return ", ".join(word(name, value) for name, value in machine.items())


def write_json(reports: Sequence[Report], path: str | Path) -> Path:
    """Write reports as a list, folders included; the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([report.as_dict() for report in reports], indent=2) + "\n", encoding="utf-8")
    return path
