"""The table of a transfer suite: data sets, each in its own metric, means, and wins over a supervised backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from esvit_pl.evaluation.logistic import SEARCHED
from esvit_pl.evaluation.names import COUNTED
from esvit_pl.profiling.published import TRANSFER, TRANSFER_SUPERVISED
from esvit_pl.runs.cells import as_csv, as_latex, as_markdown, as_text
from esvit_pl.whole import replacing

Numbers = dict[str, float]
"""What logistic regression says: ``logistic/<metric>``, ``logistic/C``, ..."""


class Line(NamedTuple):
    """A data set of the suite."""

    title: str
    metric: str
    """One of `names.COUNTED`."""
    found: dict[str, Numbers]
    """{backbone: its numbers}; empty if the data set is missing."""
    absent: str = ""
    """How to get a data set that is missing, or why it cannot be read."""

    def value(self, backbone: str) -> float:
        return self.found[backbone][f"logistic/{self.metric}"]

    def at_border(self, backbone: str) -> bool:
        """Whether C was looked for, and the best one is the smallest or the largest that was tried."""
        numbers = self.found[backbone]
        return f"logistic/held_out_{self.metric}" in numbers and numbers["logistic/C"] in [10**end for end in SEARCHED]


@dataclass(frozen=True)
class Transfer:
    """Answers of all backbones on all data sets.

    >>> dtd = Line("DTD", "top1", {"ours": {"logistic/top1": 0.7}, "theirs": {"logistic/top1": 0.6}})
    >>> table = Transfer("quick", ["ours", "theirs"], [dtd, Line("Pets", "per_class", {}, "get it: by hand")], "theirs")
    >>> print(table.text())
                              metric     ours   theirs
    DTD                     accuracy     70.0     60.0
    Pets              mean per class  missing  missing
    mean of 1 of 2                       70.0     60.0
    wins over theirs                   1 of 1
    >>> table.sentences()[0]
    'missing: Pets; get it: by hand'

    Attributes:
        suite: its name.
        backbones: in the order of the columns.
        lines: all data sets of the suite.
        supervised: the backbone over which wins are counted; None: nobody counts.
        note: what is not certain about the suite.
    """

    suite: str
    backbones: Sequence[str]
    lines: Sequence[Line]
    supervised: str | None = None
    note: str = ""

    @property
    def measured(self) -> list[Line]:
        """The data sets that are there."""
        return [line for line in self.lines if line.found]

    def mean(self, backbone: str) -> float:
        """Over the data sets that are there."""
        return fmean(line.value(backbone) for line in self.measured)

    def wins(self, backbone: str) -> int | None:
        """On how many data sets it is better than the supervised one; None for that one, or if there is none."""
        if self.supervised is None or backbone == self.supervised:
            return None
        return sum(line.value(backbone) > line.value(self.supervised) for line in self.measured)

    def cells(self) -> list[list[str]]:
        """Heading and rows, in %."""
        rows = [["", "metric", *self.backbones]]
        for line in self.lines:
            values = [f"{100 * line.value(name):.1f}" if line.found else "missing" for name in self.backbones]
            rows.append([line.title, COUNTED[line.metric], *values])
        means = [f"{100 * self.mean(name):.1f}" for name in self.backbones]
        rows.append([f"mean of {len(self.measured)} of {len(self.lines)}", "", *means])
        if self.supervised is not None:
            wins = [self.wins(name) for name in self.backbones]
            cells = ["" if number is None else f"{number} of {len(self.measured)}" for number in wins]
            rows.append([f"wins over {self.supervised}", "", *cells])
        return rows

    def text(self) -> str:
        """For a terminal."""
        return as_text(self.cells())

    def sentences(self) -> list[str]:
        """What is missing and how to get it, where C lies at the border, what the paper says, and what is doubtful."""
        lines = [f"missing: {line.title}; {line.absent}" for line in self.lines if not line.found]
        lines += [
            f"{line.title}, {name}: C={line.found[name]['logistic/C']:.3g} lies at the border of the search"
            for line in self.measured
            for name in self.backbones
            if line.at_border(name)
        ]
        paper = TRANSFER["ImageNet-1K"]
        lines.append(
            f"the paper, on its 18 data sets, Swin-T: mean {TRANSFER_SUPERVISED} supervised, {paper.mean} EsViT, "
            f"{paper.wins} wins; 17 of 18 is Swin-S, read off a figure. Which 18 they are is not verified"
        )
        return lines + [self.note] * bool(self.note)

    def write(self, folder: Path) -> list[Path]:
        """``table.md``, ``table.tex``, ``table.csv`` (every number, in full), ``results.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [
            (line.title, name, metric, value)
            for line in self.measured
            for name in self.backbones
            for metric, value in line.found[name].items()
        ]
        numbers += [(line.title, "", "missing", None) for line in self.lines if not line.found]  # type: ignore[misc]
        results: dict[str, Any] = {
            "status": "finished",
            "suite": self.suite,
            "supervised": self.supervised,
            "rows": {name: {line.title: line.found[name] for line in self.measured} for name in self.backbones},
            "means": {name: self.mean(name) for name in self.backbones},
            "wins": {name: self.wins(name) for name in self.backbones},
            "missing": {line.title: line.absent for line in self.lines if not line.found},
            "notes": self.sentences(),
        }
        tables = {
            "table.csv": as_csv([("data set", "row", "metric", "value"), *numbers]),
            "table.md": "\n".join([as_markdown(self.cells()), "", *(f"- {each}" for each in self.sentences())]) + "\n",
            "table.tex": as_latex(self.cells()) + "\n",
            "results.json": json.dumps(results, indent=2) + "\n",
        }
        for name, text in tables.items():
            with replacing(folder / name) as draft:
                draft.write_text(text, encoding="utf-8")
        return [folder / name for name in tables]
