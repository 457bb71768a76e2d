"""Runs as a table: one row a run, the settings in which they differ, how far they came, what they measured."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from esvit_pl.evaluation.names import KNN_TOP1, LINEAR_TOP1, TRAINING_LOSSES
from esvit_pl.runs.reading import Run

COLUMNS = (KNN_TOP1, LINEAR_TOP1, TRAINING_LOSSES)
SEED = "seed"
_WIDTH = 32  # of a setting's value in a terminal


class Spread(NamedTuple):
    """Mean and sample standard deviation."""

    mean: float
    std: float


Cell = str | int | float | Spread | None


class Table(NamedTuple):
    """Names of the columns, and rows with one cell for each."""

    header: list[str]
    rows: list[list[Cell]]


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings whose values are not the same in all runs, in the order in which they were typed."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def measured(runs: Sequence[Run], patterns: Iterable[str]) -> list[str]:
    """The metrics that any of the runs has, by name or by pattern: ``train/*_loss``."""
    names = dict.fromkeys(name for run in runs for name in run.results)
    return list(dict.fromkeys(name for pattern in patterns for name in names if fnmatchcase(name, pattern)))


def smaller_is_better(name: str) -> bool:
    return name.endswith("loss")


def goal(runs: Sequence[Run]) -> str | None:
    """The metric that the runs were to improve, ``optimized_metric``, else knn/top1; None where no run has it."""
    named = {run.goal for run in runs}
    metric = named.pop() if len(named) == 1 else None
    return next((name for name in (metric, KNN_TOP1) if name and measured(runs, [name])), None)


def ranked(runs: Sequence[Run], by: str, *, reverse: bool = False) -> list[Run]:
    """The runs sorted by a metric (the best first), by a setting or by ``status``, ``epochs``, ``steps`` (upwards).

    Runs without the value come last, in the order in which they are given.

    Args:
        reverse: the other way round.

    Raises:
        ValueError: no run has such a value.
    """
    known = [*differing(runs), "status", "epochs", "steps", *measured(runs, ["*"])]
    if by not in known:
        found = get_close_matches(by, known)
        hint = f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(known)}"
        raise ValueError(f"sort={by}: no run has it; {hint}")
    is_metric = any(by in run.results for run in runs)
    downwards = (is_metric and not smaller_is_better(by)) != reverse
    keys = {id(run): _sorting_key(_value(run, by)) for run in runs}
    there = [run for run in runs if keys[id(run)] is not None]
    there.sort(key=lambda run: keys[id(run)] or (), reverse=downwards)
    return there + [run for run in runs if keys[id(run)] is None]


def run_table(runs: Sequence[Run], columns: Iterable[str] = COLUMNS, *, base: str | os.PathLike[str] = ".") -> Table:
    """One row a run, in the given order.

    Args:
        columns: metrics, by name or by pattern; those that no run has are left out.
        base: the folder from which the runs are named.
    """
    settings, metrics = differing(runs), measured(runs, columns)
    header = ["run", *settings, "status", "epochs", "steps", *metrics]
    rows: list[list[Cell]] = [
        [
            os.path.relpath(run.folder, base),
            *(run.overrides.get(key) for key in settings),
            run.status,
            run.epochs,
            run.steps,
            *(run.results.get(name) for name in metrics),
        ]
        for run in runs
    ]
    return Table(header, rows)


def groups(runs: Sequence[Run]) -> dict[tuple[str | None, ...], list[Run]]:
    """Runs that differ in nothing but the seed, by the values of all other settings that `differing` names."""
    settings = [key for key in differing(runs) if key != SEED]
    together: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        together.setdefault(tuple(run.overrides.get(key) for key in settings), []).append(run)
    return together


def seed_table(runs: Sequence[Run], columns: Iterable[str] = COLUMNS) -> Table | None:
    """Mean and deviation over the finished runs that differ in the seed; None if there are no two of a kind."""
    metrics = measured(runs, columns)
    known = [run for run in runs if run.overrides]  # of a run without notes nobody knows what it was
    finished = [(key, [run for run in some if run.status == "finished"]) for key, some in groups(known).items()]
    if not metrics or all(len(some) < 2 for _, some in finished):
        return None
    header = [*(key for key in differing(known) if key != SEED), "seeds", *metrics]
    rows: list[list[Cell]] = [
        [*key, len(some), *(_spread([run.results[name] for run in some if name in run.results]) for name in metrics)]
        for key, some in finished
        if some
    ]
    return Table(header, rows)


def report(runs: Sequence[Run], columns: Iterable[str] = COLUMNS, *, base: str | os.PathLike[str] = ".") -> str:
    """All that a terminal shows: the runs, what failed, and the spread over seeds."""
    columns = list(columns)
    parts = [as_text(run_table(runs, columns, base=base))]
    failures = [f"{os.path.relpath(run.folder, base)}: {_cut(run.error, 120)}" for run in runs if run.error]
    if failures:
        parts.append("\n".join(failures))
    seeds = seed_table(runs, columns)
    if seeds is not None:
        parts.append(f"mean ± standard deviation over the seeds of finished runs\n{as_text(seeds)}")
    return "\n\n".join(parts)


def as_text(table: Table) -> str:
    """Aligned columns, numbers to the right; accuracies in %."""
    columns = []
    for index, name in enumerate(table.header):
        cells = [row[index] for row in table.rows]
        texts = [name, *(shown(cell, name) for cell in cells)]
        width = max(map(len, texts))
        left = any(isinstance(cell, str) and not _is_number(cell) for cell in cells)
        columns.append([f"{text:<{width}}" if left else f"{text:>{width}}" for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def write_csv(table: Table, path: str | os.PathLike[str]) -> Path:
    """The table with all digits; accuracies are fractions. The folder is made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([table.header, *table.rows])
    return path


def dots(runs: Sequence[Run], metric: str) -> dict[str, list[float]]:
    """``{settings in words: the metric of each run}`` of runs that differ in the seed alone, for a picture.

    Without the runs that have no such value; a group of which none has it keeps an empty list.
    """
    settings = [key for key in differing(runs) if key != SEED]
    return {
        _words(settings, key): [
            value for run in some if (value := run.results.get(metric)) is not None and math.isfinite(value)
        ]
        for key, some in groups(runs).items()
    }


def shown(cell: Cell, name: str) -> str:
    """A cell as a terminal shows it in the column ``name``: accuracies in %, numbers of a sweeper with four digits."""
    is_accuracy = name.rpartition("/")[2].startswith("top")
    if cell is None:
        return "-"
    if isinstance(cell, Spread):
        if is_accuracy:
            return f"{100 * cell.mean:.1f} ± {100 * cell.std:.1f}%"
        return f"{cell.mean:.4g} ± {cell.std:.2g}"
    if isinstance(cell, float):
        return f"{100 * cell:.1f}%" if is_accuracy else f"{cell:.4g}"
    if isinstance(cell, str) and len(cell) > 8 and _is_number(cell):
        return f"{float(cell):.4g}"
    return _cut(str(cell), _WIDTH) if name not in ("run", "status") else str(cell)


def _words(settings: Sequence[str], values: Sequence[str | None]) -> str:
    """``lr=0.001  momentum=0.99``: the last parts of the names, where they are unambiguous."""
    last = [key.rpartition(".")[2] for key in settings]
    names = [short if last.count(short) == 1 else key for short, key in zip(last, settings, strict=True)]
    pairs = [f"{name}={shown(value, name)}" for name, value in zip(names, values, strict=True) if value is not None]
    return "  ".join(pairs) or ("as configured" if settings else "the same settings")


def _value(run: Run, name: str) -> str | int | float | None:
    reached: dict[str, str | int | None] = {"status": run.status, "epochs": run.epochs, "steps": run.steps}
    some: Mapping[str, str | int | float | None] = {**run.overrides, **reached, **run.results}
    return some.get(name)


def _sorting_key(value: str | int | float | None) -> tuple[int, float, str] | None:
    """Numbers by size before words; None for what cannot be sorted."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return (0, float(value), "") if _is_number(value) else (1, 0.0, str(value))


def _is_number(value: str | int | float) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _spread(values: Sequence[float]) -> Cell:
    if not values:
        return None
    return Spread(mean(values), stdev(values)) if len(values) > 1 else values[0]


def _cut(text: str | None, width: int) -> str:
    text = text or ""
    return text if len(text) <= width else f"{text[: width - 1]}…"
