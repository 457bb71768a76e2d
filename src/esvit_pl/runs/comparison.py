"""Several encoders in one table: each probe's number with its interval, and which differences are real."""

# q query images

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from esvit_pl.evaluation.interval import resampled, wilson
from esvit_pl.evaluation.names import TITLES, by_block, is_accuracy
from esvit_pl.runs.cells import as_csv, as_latex, as_markdown, as_text
from esvit_pl.whole import replacing


class Answer(NamedTuple):
    """What one probe says of one encoder."""

    numbers: Mapping[str, float]
    """{metric: number}, the one that tables show first."""
    right: Mapping[str, np.ndarray]
    """{accuracy: (q,) bool, whether each query image is answered right}; empty if the probe does not tell."""

    @property
    def main(self) -> str:
        """The metric that tables show."""
        return next(iter(self.numbers))


class Difference(NamedTuple):
    """Two encoders on the same images."""

    metric: str
    one: str
    other: str
    less: float
    """The accuracy of `one` less that of `other`."""
    low: float
    high: float
    """Ends of its 95 % interval."""

    @property
    def real(self) -> bool:
        """Whether 0 lies outside the interval."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Answers of all encoders to all probes.

    >>> a = Answer({"knn/top1": 0.9}, {"knn/top1": np.arange(100) < 90})
    >>> b = Answer({"knn/top1": 0.8}, {"knn/top1": np.arange(100) < 80})
    >>> both = Comparison({"a": {"knn": a}, "b": {"knn": b}})
    >>> print(both.text())
                   k-NN
    a  90.0 (84.0-95.0)
    b  80.0 (72.0-88.0)
    >>> both.sentences()
    ['knn/top1: b less a -10.0 (-16.0 to -5.0), a real difference']

    Attributes:
        rows: {encoder: {probe: answer}}, in the order of the table.
        groups: of the query images, for `interval.resampled`.
        compared: the encoders of which each pair is compared; by default all.
    """

    rows: Mapping[str, Mapping[str, Answer]]
    groups: Sequence[Any] | None = None
    compared: Sequence[str] | None = None

    @property
    def probes(self) -> list[str]:
        rows = sorted(self.rows.values(), key=len, reverse=True)  # the fullest row has the order that was asked for
        return list(dict.fromkeys(probe for answers in rows for probe in answers))

    def interval(self, answer: Answer, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of an accuracy, by a bootstrap over images; None where the probe does not tell which are
        right. Where all are right or all are wrong a bootstrap sees no spread, and Wilson's interval is given."""
        right = answer.right.get(metric)
        if right is None:
            return None
        if right.all() or not right.any():
            return wilson(float(right.mean()), len(right) if self.groups is None else len(set(self.groups)))
        return resampled(right, self.groups)

    def differences(self) -> list[Difference]:
        """Compares each pair of encoders, in each accuracy for which both of them know which images they get right."""
        found = []
        for probe in self.probes:
            names = [name for name in self.compared or self.rows if probe in self.rows[name]]
            for two, one in combinations(names, 2):  # the later one less the earlier
                theirs, ours = self.rows[two][probe].right, self.rows[one][probe].right
                for metric in [metric for metric in ours if metric in theirs]:
                    gain = ours[metric].astype(np.int8) - theirs[metric].astype(np.int8)
                    found.append(Difference(metric, one, two, float(gain.mean()), *resampled(gain, self.groups)))
        return found

    # -- as text

    def cells(self) -> list[list[str]]:
        """Heading and rows; accuracies in %."""
        head = ["", *(TITLES.get(probe, probe) for probe in self.probes)]
        return [head, *([name, *map(self._cell, self._answers(name))] for name in self.rows)]

    def blocks(self) -> list[list[str]]:
        """Heading and rows of what probes say of each block of each encoder; nothing if none does."""
        found = {
            f"{name}, block {block}": numbers
            for name, answers in self.rows.items()
            for block, numbers in by_block({k: v for each in answers.values() for k, v in each.numbers.items()}).items()
        }
        measures = list(dict.fromkeys(measure for numbers in found.values() for measure in numbers))
        rows = [[row, *(f"{each[m]:.3g}" if m in each else "" for m in measures)] for row, each in found.items()]
        return [["", *(TITLES.get(measure, measure) for measure in measures)], *rows] if rows else []

    def text(self) -> str:
        """For a terminal, numbers to the right."""
        return self._tables(as_text)

    def markdown(self) -> str:
        return self._tables(as_markdown)

    def latex(self) -> str:
        """A tabular of booktabs, and another one of the blocks."""
        return self._tables(as_latex)

    def _tables(self, written: Callable[[list[list[str]]], str]) -> str:
        return "\n\n".join(map(written, filter(None, [self.cells(), self.blocks()])))

    def sentences(self) -> list[str]:
        """A line for each difference between main metrics."""
        main = {self.rows[name][probe].main for name in self.rows for probe in self.rows[name]}
        return [
            f"{each.metric}: {each.one} less {each.other} {100 * each.less:+.1f} ({100 * each.low:+.1f} to "
            f"{100 * each.high:+.1f}), {'a real difference' if each.real else 'within what chance explains'}"
            for each in self.differences()
            if each.metric in main
        ]

    def write(self, folder: Path) -> list[Path]:
        """``table.md``, ``table.tex``, ``table.csv`` (every number, in full), ``differences.csv``, ``results.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [
            (name, metric, value, *(self.interval(answer, metric) or (None, None)))
            for name, answers in self.rows.items()
            for answer in answers.values()
            for metric, value in answer.numbers.items()
        ]
        differences = self.differences()
        results: dict[str, Any] = {
            "status": "finished",
            "rows": {name: {} for name in self.rows},
            "intervals": {name: {} for name in self.rows},
            "differences": [{**each._asdict(), "real": each.real} for each in differences],
        }
        for name, metric, value, low, high in numbers:
            results["rows"][name][metric] = value
            if low is not None:
                results["intervals"][name][metric] = [low, high]
        tables = {
            "table.csv": as_csv([("row", "metric", "value", "low", "high"), *numbers]),
            "differences.csv": as_csv([(*Difference._fields, "real"), *((*each, each.real) for each in differences)]),
            "table.md": self.markdown() + "\n",
            "table.tex": self.latex() + "\n",
            "results.json": json.dumps(results, indent=2) + "\n",
        }
        for name, text in tables.items():
            with replacing(folder / name) as draft:
                draft.write_text(text, encoding="utf-8")
        return [folder / name for name in tables]

    def _answers(self, name: str) -> list[Answer | None]:
        return [self.rows[name].get(probe) for probe in self.probes]

    def _cell(self, answer: Answer | None) -> str:
        if answer is None:
            return ""
        value = answer.numbers[answer.main]
        if not is_accuracy(answer.main):
            return f"{value:.3g}"
        bounds = self.interval(answer, answer.main)
        beside = "" if bounds is None else f" ({100 * bounds[0]:.1f}-{100 * bounds[1]:.1f})"
        return f"{100 * value:.1f}{beside}"
