"""Reads ``metrics.csv``, which `loggers.MetricsCSV` writes. Loads neither torch nor Lightning."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

HEADER = ["step", "epoch", "name", "value"]


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The file of `MetricsCSV` as one dict a step, ``{"step": ..., "epoch": ..., name: value, ...}``, sorted by step.

    If a metric has several values at one step, the last counts. Incomplete rows, of a run that was killed, are skipped.
    """
    steps: dict[int, dict[str, float]] = {}
    with Path(path).open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                step, name, value = int(row["step"]), row["name"], float(row["value"])
                epoch = {"epoch": int(row["epoch"])} if row["epoch"] else {}
            except (KeyError, TypeError, ValueError):
                continue
            steps.setdefault(step, {"step": step}).update({**epoch, name: value})
    return [steps[step] for step in sorted(steps)]


def curve(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Epochs that are done, and a metric after each, the last value of an epoch; empty if nobody logged it.

    >>> curve([{"step": 9, "epoch": 0, "knn/top1": 0.4}, {"step": 19, "epoch": 1, "knn/top1": 0.5}], "knn/top1")
    ([1, 2], [0.4, 0.5])

    Args:
        rows: of `read_metrics`.
    """
    values = {row["epoch"] + 1: row[name] for row in rows if name in row and "epoch" in row}
    return list(values), list(values.values())
