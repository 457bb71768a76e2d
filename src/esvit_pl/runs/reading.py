"""Reads run folders: settings, progress, results. It does not import torch, so that ``esvit-table`` starts quickly."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from esvit_pl.evaluation.names import PRETRAINED, PROBES, UNTRAINED, main_metric, untrained
from esvit_pl.runs.lock import is_dead, read_lock
from esvit_pl.secret_values import starred

_TAIL = 2**17  # this many bytes at the end of metrics.csv are read: thousands of rows, in milliseconds


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    Attributes:
        overrides: settings of the command line or a sweeper, key -> value as typed; ``~key`` -> "" for a deleted one.
        status: ``finished``, ``stopped`` (Ctrl-C, a signal), ``failed`` or ``running``, as the run wrote it.
            ``killed``: it is "running", and its process is gone. ``silent``: it is "running", but has written nothing
            for a long time, and ran on another machine: it was killed or is very slow.
            ``no results``: there is a folder, but no status in it.
        epochs, steps: epochs begun and steps done; None if nothing is logged.
        results: the last value of every metric; accuracies are fractions. Those of the same backbone before training
            are called ``untrained/knn/top1``, ...
        images: {part of the data: how many were measured}, of bank and query.
        kind: "training" or "evaluation" (of a backbone that was trained before); None without a config.
        error: of a failed run, in one line.
        goal: its ``optimized_metric``.

    >>> Run(Path("logs/a_run"), overrides={"loss": "view"}, status="finished", results={"knn/top1": 0.593}).goal is None
    True
    """

    folder: Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    status: str = "no results"
    epochs: int | None = None
    steps: int | None = None
    results: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    kind: str | None = None
    error: str | None = None
    goal: str | None = None


def find_runs(*folders: str | os.PathLike[str], silent_after: float = 3600.0) -> list[Run]:
    """Every run in or below the folders, in the order of their names, 2 before 10.

    A run's folder holds ``.hydra/overrides.yaml`` or ``results.json``; nothing is looked for inside it.

    Args:
        silent_after: a "running" run that has written nothing for so many seconds is called ``silent``.

    Raises:
        ValueError: a folder does not exist.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"there is no folder '{folder}'")
        for path in sorted(_run_folders(folder), key=_natural):
            found.setdefault(path.resolve(), read_run(path, silent_after=silent_after))
    return list(found.values())


def read_run(folder: str | os.PathLike[str], *, silent_after: float = 3600.0) -> Run:
    """The run in one folder. If a file is missing or incomplete, its part of the result stays empty."""
    folder = Path(folder)
    written = read_json(folder / "results.json")
    last = _last_logged(folder / "metrics.csv")
    before = {untrained(metric): value for metric, value in _probes(written, UNTRAINED).items()}
    # What the probes measure at the end of a run replaces what callbacks measured in its last epoch.
    results = {**last.metrics, **_numbers(written.get("metrics")), **_probes(written, PRETRAINED), **before}
    status = str(written.get("status", "no results"))
    if status == "running":
        owner = read_lock(folder)
        if owner is not None and is_dead(owner):
            status = "killed"
        elif time.time() - _last_write(folder) > silent_after:
            status = "silent"
    error = written.get("error")
    config = _config_lines(folder)
    return Run(
        folder,
        overrides=_overrides(read_overrides(folder)),
        status=status,
        epochs=last.epochs,
        steps=last.steps,
        results=results,
        images=_images(written.get("evaluation")),
        kind=_kind(config),
        error=" ".join(str(error).split()) if error else None,
        goal=_goal(config),
    )


def read_overrides(folder: str | os.PathLike[str]) -> list[str]:
    """The settings of the command line that began a run, word for word; empty where none are written down."""
    path = Path(folder) / ".hydra" / "overrides.yaml"
    return _words(path) if path.is_file() else []


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds; nothing where it is missing or incomplete."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _run_folders(top: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(top):
        if "results.json" in files or os.path.isfile(os.path.join(path, ".hydra", "overrides.yaml")):
            folders.clear()
            yield Path(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """A sorting key: whole numbers by size, before words."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]


def _overrides(words: Iterable[str]) -> dict[str, str]:
    pairs = (starred(word).partition("=") for word in words)
    settings = {key.lstrip("+"): value for key, _, value in pairs}
    return {key: value for key, value in settings.items() if key not in ("out", "overwrite")}  # of no training


def _words(path: Path) -> list[str]:
    """The list in a YAML file. A list of plain words, the usual case, is read line by line, thirty times as fast."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if all(line.startswith("- ") and line[2:3] not in ("'", '"', "|", ">") for line in lines):
        return [line[2:] for line in lines]
    try:
        words = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return []
    return [str(word) for word in words] if isinstance(words, list) else []


def _config_lines(folder: Path) -> list[str]:
    """A run's config as text: parsing the whole YAML would take ten times as long. Empty if there is none."""
    paths = (folder / ".hydra" / "config.yaml", folder / "config.yaml")
    path = next((path for path in paths if path.is_file()), None)
    return [] if path is None else path.read_text(encoding="utf-8", errors="replace").splitlines()


def _kind(lines: Sequence[str]) -> str | None:
    if not lines:
        return None
    return "training" if "resume:" in lines else "evaluation"  # the settings of conf/resume are those of a training


def _goal(lines: Sequence[str]) -> str | None:
    """``optimized_metric`` of a config."""
    value = next((line.partition(": ")[2].strip() for line in lines if line.startswith("optimized_metric: ")), "null")
    return None if value == "null" else value


class _Logged(NamedTuple):
    metrics: dict[str, float]
    epochs: int | None
    steps: int | None


def _last_logged(path: Path) -> _Logged:
    """The last value of every metric at the end of a `MetricsCSV` file, epochs begun and steps done."""
    if not path.is_file():
        return _Logged({}, None, None)
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL, 0))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    metrics: dict[str, float] = {}
    epochs, steps = None, None
    for line in reversed(lines):
        try:
            step, epoch, name, value = line.split(",")
            if name not in metrics:
                steps = steps or int(step) + 1
                epochs = epochs or (int(epoch) + 1 if epoch else None)
                metrics[name] = float(value)
        except ValueError:  # the header, or an incomplete row
            continue
    return _Logged(metrics, epochs, steps)


def _probes(results: Mapping[str, Any], row: str) -> dict[str, float]:
    """``{"knn/top1": ...}`` of one row of the tables at the end of a run."""
    tables = {probe: results.get(probe) for probe in PROBES}
    rows = {main_metric(probe): table.get(row) for probe, table in tables.items() if isinstance(table, dict)}
    return _numbers(rows)


def _images(evaluation: object) -> dict[str, int]:
    images = evaluation.get("images") if isinstance(evaluation, Mapping) else None
    return {name: int(number) for name, number in _numbers(images).items()}


def _numbers(values: object) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {str(name): float(value) for name, value in values.items() if isinstance(value, int | float)}


def _last_write(folder: Path) -> float:
    """When a file in the folder or in one of its subfolders was last written, in seconds since 1970."""
    return max((entry.stat().st_mtime for entry in _entries([folder, *_subfolders(folder)])), default=0.0)


def _entries(folders: Iterable[Path]) -> Iterator[os.DirEntry[str]]:
    for folder in folders:
        with os.scandir(folder) as entries:
            yield from entries


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]
