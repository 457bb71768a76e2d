"""Tables of runs: a row for each run, with the settings in which they differ, their progress and their results."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from esvit_pl.evaluation.names import KNN_TOP1, LINEAR_TOP1, TRAINING_LOSSES, is_accuracy, untrained
from esvit_pl.runs.reading import Run
from esvit_pl.safe_text import for_csv, for_terminal

COLUMNS = (KNN_TOP1, LINEAR_TOP1, "segmentation_*/miou", "keypoints/pck", "rankme", TRAINING_LOSSES)
TITLES: dict[str | None, str] = {"training": "trainings", "evaluation": "evaluations"}
SEED = "seed"
_WIDTH = 32  # longest text of a setting's value in a terminal


class Spread(NamedTuple):
    """Mean and sample standard deviation of several runs."""

    mean: float
    std: float


Cell = str | int | float | Spread | None


class Table(NamedTuple):
    """Names of the columns, and rows with one cell for each."""

    header: list[str]
    rows: list[list[Cell]]


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings whose values differ between the runs, in the order in which they were typed."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def measured(runs: Sequence[Run], patterns: Iterable[str]) -> list[str]:
    """The metrics that at least one run has, chosen by name or by a pattern such as ``train/*_loss``."""
    names = dict.fromkeys(name for run in runs for name in run.results)
    return list(dict.fromkeys(name for pattern in patterns for name in names if fnmatchcase(name, pattern)))


def smaller_is_better(name: str) -> bool:
    return name.endswith("loss")


def goal(runs: Sequence[Run]) -> str | None:
    """The runs' ``optimized_metric`` if they agree on one, else knn/top1; None if no run has measured it."""
    named = {run.goal for run in runs}
    metric = named.pop() if len(named) == 1 else None
    return next((name for name in (metric, KNN_TOP1) if name and measured(runs, [name])), None)


def ranked(runs: Sequence[Run], by: str, *, reverse: bool = False) -> list[Run]:
    """The runs sorted by a metric (best first), or by a setting, ``status``, ``epochs`` or ``steps`` (ascending).

    Runs without the value come last, in their given order.

    Args:
        reverse: reverse that order.

    Raises:
        ValueError: no run has a value of this name.
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


def run_table(
    runs: Sequence[Run],
    columns: Iterable[str] = COLUMNS,
    *,
    base: str | os.PathLike[str] = ".",
    settings: int | None = None,
) -> Table:
    """A row for each run, in the given order.

    Args:
        columns: metrics, by name or by pattern; those that no run has are left out.
        base: the runs' names are their paths relative to this folder.
        settings: show so many of those that differ at most; None shows all.
    """
    keys, metrics = differing(runs)[:settings], measured(runs, columns)
    header = ["run", *keys, "status", "epochs", "steps", *metrics]
    rows: list[list[Cell]] = [
        [
            os.path.relpath(run.folder, base),
            *(run.overrides.get(key) for key in keys),
            run.status,
            run.epochs,
            run.steps,
            *(run.results.get(name) for name in metrics),
        ]
        for run in runs
    ]
    return Table(header, rows)


def groups(runs: Sequence[Run]) -> dict[tuple[str | None, ...], list[Run]]:
    """{values of the differing settings, without the seed: the runs that have them}."""
    settings = [key for key in differing(runs) if key != SEED]
    together: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        together.setdefault(tuple(run.overrides.get(key) for key in settings), []).append(run)
    return together


def seed_table(runs: Sequence[Run], columns: Iterable[str] = COLUMNS, *, settings: int | None = None) -> Table | None:
    """Mean and deviation over finished runs that differ only in the seed, where there are two or more; else None."""
    metrics = measured(runs, columns)
    known = [run for run in runs if run.overrides]  # without overrides it is not known what a run was
    finished = [(key, [run for run in some if run.status == "finished"]) for key, some in groups(known).items()]
    if not metrics or all(len(some) < 2 for _, some in finished):
        return None
    header = [*[key for key in differing(known) if key != SEED][:settings], "seeds", *metrics]
    rows: list[list[Cell]] = [
        [
            *key[:settings],
            len(some),
            *(_spread([run.results[name] for run in some if name in run.results]) for name in metrics),
        ]
        for key, some in finished
        if len(some) > 1
    ]
    return Table(header, rows)


def report(
    runs: Sequence[Run],
    columns: Iterable[str] = COLUMNS,
    *,
    base: str | os.PathLike[str] = ".",
    settings: int | None = None,
) -> str:
    """The text for a terminal: trainings, then evaluations; failed ones with their errors, seeds with their spread."""
    columns, parts = list(columns), []
    kinds = {kind: some for kind in (*TITLES, None) if (some := [run for run in runs if run.kind == kind])}
    for kind, some in kinds.items():
        if len(kinds) > 1:
            parts.append(TITLES.get(kind, "runs without a config"))
        parts += _report(some, columns, base, settings)
    return "\n\n".join(parts)


def _report(
    runs: Sequence[Run], columns: Sequence[str], base: str | os.PathLike[str], settings: int | None
) -> Iterator[str]:
    yield as_text(run_table(runs, columns, base=base, settings=settings))
    hidden = differing(runs)[settings:] if settings is not None else []
    if hidden:
        yield for_terminal(f"{len(hidden)} more settings differ: {', '.join(hidden)} (settings=null shows them)")
    errors = [(os.path.relpath(run.folder, base), _cut(run.error, 120)) for run in runs if run.error]
    failures = [f"{for_terminal(folder)}: {for_terminal(error)}" for folder, error in errors]
    if failures:
        yield "\n".join(failures)
    seeds = seed_table(runs, columns, settings=settings)
    if seeds is not None:
        yield f"mean ± standard deviation over the seeds of finished runs\n{as_text(seeds)}"


def as_text(table: Table) -> str:
    """Aligned columns, numbers to the right; accuracies in %."""
    columns = []
    for index, name in enumerate(table.header):
        cells = [row[index] for row in table.rows]
        texts = [for_terminal(text) for text in (name, *(shown(cell, name) for cell in cells))]
        width = max(map(len, texts))
        left = any(isinstance(cell, str) and not _is_number(cell) for cell in cells)
        columns.append([f"{text:<{width}}" if left else f"{text:>{width}}" for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def write_csv(table: Table, path: str | os.PathLike[str]) -> Path:
    """Write the table with all digits, accuracies as fractions, and return the path. Its folder is created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        lines: list[Sequence[Cell]] = [table.header, *table.rows]
        rows = ([for_csv(cell) if isinstance(cell, str) else cell for cell in line] for line in lines)
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def dots(runs: Sequence[Run], metric: str) -> dict[str, list[float]]:
    """``{settings as text: the metric of each run with these settings}``, for a picture.

    Runs without the metric are left out; if no run of a group has it, its list is empty.
    """
    settings = [key for key in differing(runs) if key != SEED]
    return {
        _words(settings, key): [
            value for run in some if (value := run.results.get(metric)) is not None and math.isfinite(value)
        ]
        for key, some in groups(runs).items()
    }


def draw(runs: Sequence[Run], metric: str, path: str | Path) -> list[Path]:
    """The picture of `dots`, and where the metric lay before training; the path, or nothing if no run has a value."""
    from esvit_pl.visualize import save, sweep

    groups = dots(runs, metric)
    if not any(groups.values()):  # every loss is NaN
        return []
    before = [run.results[untrained(metric)] for run in runs if untrained(metric) in run.results]
    return [save(sweep(groups, metric, smaller_is_better=smaller_is_better(metric), untrained=before), path)]


def shown(cell: Cell, name: str) -> str:
    """The text of a cell in the column ``name``: accuracies in %, long numbers of a sweeper with four digits."""
    in_percent = is_accuracy(name)
    if cell is None:
        return "-"
    if isinstance(cell, Spread):
        if in_percent:
            return f"{100 * cell.mean:.1f} ± {100 * cell.std:.1f}%"
        return f"{cell.mean:.4g} ± {cell.std:.2g}"
    if isinstance(cell, float):
        return f"{100 * cell:.1f}%" if in_percent else f"{cell:.4g}"
    if isinstance(cell, str) and len(cell) > 8 and _is_number(cell):
        return f"{float(cell):.4g}"
    return str(cell) if name in ("run", "status", "experiment", "source") else _cut(str(cell), _WIDTH)


def _words(settings: Sequence[str], values: Sequence[str | None]) -> str:
    """``lr=0.001  momentum=0.99``: of a dotted name only the last part, unless two would be the same."""
    last = [key.rpartition(".")[2] for key in settings]
    names = [short if last.count(short) == 1 else key for short, key in zip(last, settings, strict=True)]
    pairs = [f"{name}={shown(value, name)}" for name, value in zip(names, values, strict=True) if value is not None]
    return "  ".join(pairs) or ("as configured" if settings else "the same settings")


def _value(run: Run, name: str) -> str | int | float | None:
    reached: dict[str, str | int | None] = {"status": run.status, "epochs": run.epochs, "steps": run.steps}
    some: Mapping[str, str | int | float | None] = {**run.overrides, **reached, **run.results}
    return some.get(name)


def _sorting_key(value: str | int | float | None) -> tuple[int, float, str] | None:
    """Numbers by size, then words; None for missing values and nan."""
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
