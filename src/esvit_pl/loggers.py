"""A logger that writes one plain file, and a function that gives figures to any logger."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from esvit_pl.metrics_file import HEADER
from esvit_pl.metrics_file import curve as curve
from esvit_pl.metrics_file import read_metrics as read_metrics
from esvit_pl.safe_text import for_csv
from esvit_pl.visualize import save


class MetricsCSV(Logger):
    """Appends every metric as one row ``step,epoch,name,value`` to ``metrics.csv``.

    >>> logger = MetricsCSV("run")  # Trainer(logger=logger)
    >>> logger.log_metrics({"train/view_loss": 2.5, "epoch": 0}, step=9)
    >>> read_metrics("run/metrics.csv")
    [{'step': 9, 'epoch': 0, 'train/view_loss': 2.5}]

    Rows are never changed. New metrics may appear at any time, and a resumed run appends to the same file, after
    `cut_metrics` has moved the rows that it will log again. `read_metrics` reads it; with pandas, as a table with a row
    for each step:

        pd.read_csv("metrics.csv").pivot_table(index="step", columns="name", values="value", aggfunc="last")

    Figures become PNG files in ``figures/`` beside the file. Hyperparameters are not written, because the run folder
    holds the resolved config.

    Args:
        folder: of the file; it is created if it does not exist.
        name: of the file.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = "metrics.csv") -> None:
        super().__init__()
        if Path(name).name != name or not name.endswith(".csv"):
            raise ValueError(
                f"MetricsCSV writes a .csv file in its folder; name must be such as metrics.csv, got {name!r}"
            )
        self.path = Path(folder) / name

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        rows = [[_text(step), _text(epoch), for_csv(name), float(value)] for name, value in values.items()]
        if rows:
            self._append(rows)

    @rank_zero_only
    def log_figure(self, name: str, figure: Any, step: int) -> None:
        save_figure(self.path.parent / "figures", name, figure, step)

    def _append(self, rows: list[list[Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(HEADER)
            elif not self._ends_a_line():
                file.write("\n")  # an earlier run was killed while it wrote
            writer.writerows(rows)

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def cut_metrics(path: str | os.PathLike[str], step: int, *, aside: str | os.PathLike[str]) -> int:
    """Move the rows of step `step` and later, which a run that is resumed there logs again, into a file of their own.

    Incomplete rows go there, too. A file without such rows stays as it is.

    Args:
        path: file of `MetricsCSV`; it may be missing.
        step: number of optimizer steps that the resumed run has done.
        aside: the new file.

    Returns:
        The number of rows that were moved.
    """
    path, aside = Path(path), Path(aside)
    if not path.is_file():
        return 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.reader(file) if row != HEADER]
    stays = [len(row) == len(HEADER) and (not row[0] or int(row[0]) < step) for row in rows]
    kept, moved = ([row for row, stay in zip(rows, stays, strict=True) if stay is wanted] for wanted in (True, False))
    if moved:
        _write_rows(aside, moved)
        draft = path.with_name(f".{path.name}.tmp")
        _write_rows(draft, kept)
        draft.replace(path)
    return len(moved)


def _write_rows(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])


def save_figure(folder: str | os.PathLike[str], name: str, figure: Any, step: int) -> Path:
    """Write ``<folder>/<name>/step_000041.png``, and return its path."""
    return save(figure, Path(folder) / name / f"step_{step:06d}.png")


def log_figure(logger: Any, name: str, figure: Any, step: int) -> bool:
    """Give a figure to a logger of Lightning. Call it on the first process only.

    Supported are `MetricsCSV` and any other logger with ``log_figure(name, figure, step)``, Weights & Biases (and any
    logger with ``log_image(key=, images=, step=)``), TensorBoard, MLflow, Comet and Neptune.

    Args:
        logger: a logger of Lightning.
        name: e.g. "attention"; a slash makes a group.
        figure: of matplotlib.
        step: 0 for the first one.

    Returns:
        Whether the logger takes figures.
    """
    if hasattr(logger, "log_figure"):
        logger.log_figure(name, figure, step)
        return True
    if hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(key=name, images=[figure], step=step)
        return True
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_figure"):  # TensorBoard
        experiment.add_figure(name, figure, global_step=step, close=False)
    elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):  # MLflow
        experiment.log_figure(logger.run_id, figure, f"{name}/step_{step:06d}.png")
    elif hasattr(experiment, "log_figure"):  # Comet
        experiment.log_figure(figure_name=name, figure=figure, step=step)
    elif type(logger).__name__ == "NeptuneLogger" and hasattr(experiment, "__getitem__"):
        experiment[name].append(figure, step=step)
    else:
        return False
    return True


def _text(number: float | None) -> str:
    return "" if number is None else str(int(number))
