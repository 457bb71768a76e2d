"""Our runs beside the published results of the same experiments, on ImageNet-1k."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from esvit_pl.evaluation.names import KNN_TOP1
from esvit_pl.profiling import published
from esvit_pl.runs.claim import run_of
from esvit_pl.runs.reading import Run, read_run
from esvit_pl.runs.table import Cell, Table

IMAGENET = {"bank": 1_281_167, "query": 50_000}
"""Images of ImageNet-1k that are measured."""
LINEAR = "linear/best_on_query/top1"
"""The best learning rate's accuracy on the validation images, as the paper's tables have it."""
PROTOCOL = f"""\
published: Li et al., arXiv 2106.09785, top 1 on ImageNet-1k. linear: 100 epochs on features of the last 4 blocks, and
the best of three learning rates on the validation images; k-NN: 20 neighbours. Rivals have other protocols of training.
ours: {LINEAR} and {KNN_TOP1} of finished runs with experiment=NAME on ImageNet-1k."""
_UNSAID = ("experiment", "dataset.root", "out", "overwrite", "logger", "datamodule.num_workers", "paths.log_dir")


def published_table(runs: Sequence[Run], *, base: str | os.PathLike[str] = ".") -> Table:
    """A row for each published result, and one for each run that repeats it; ours are None where nobody has trained.

    The last column has what else was typed for a run: its seed, and what makes it another training.

    >>> table = published_table([])
    >>> dict(zip(table.header, table.rows[0]))["experiment"]
    'swin_tiny_w7_view'
    """
    header = ["experiment", "linear, published", "linear, ours", "k-NN, published", "k-NN, ours", "source", "run"]
    rows: list[list[Cell]] = []
    repeating = [(experiment_of(run), run) for run in runs if not misses(run)]
    for name, accuracy in published.EXPERIMENTS.items():
        both = str(accuracy).split(" / ")
        repeated: list[Run | None] = [run for experiment, run in repeating if experiment == name]
        for mine in repeated or [None]:
            ours = [_percent(None if mine is None else mine.results.get(metric)) for metric in (LINEAR, KNN_TOP1)]
            run = None if mine is None else " ".join([os.path.relpath(mine.folder, base), *_settings(mine)])
            rows.append([name, both[0], ours[0], both[1], ours[1], _source(name), run])
    for rival in published.RIVALS:
        linear, knn = (None if value is None else f"{value:.1f}" for value in (rival.linear_percent, rival.knn_percent))
        source = "Table 1" if rival.remark in (None, published.ESTIMATED) else f"Table 1, {rival.remark}"
        rows.append([f"{rival.method} {rival.architecture}", linear, None, knn, None, source, None])
    return Table(header, rows)


def left_out(runs: Sequence[Run], *, base: str | os.PathLike[str] = ".") -> list[str]:
    """A line for each run of a published experiment that does not stand in the table, with the reason."""
    return [
        f"{os.path.relpath(run.folder, base)} (experiment={name}) is not in the table: {reason}"
        for run in runs
        if (reason := misses(run)) and (name := experiment_of(run)) in published.EXPERIMENTS
    ]


def experiment_of(run: Run) -> str | None:
    """The experiment that a training repeats, or the training whose checkpoint is measured."""
    own = run.overrides.get("experiment")
    trained = run_of(run.overrides.get("ckpt_path")) if own is None else None
    return own if trained is None else read_run(trained).overrides.get("experiment")


def misses(run: Run) -> str:
    """Why a run cannot stand beside a published result; empty if it can."""
    if run.status != "finished":
        return f"its status is '{run.status}'"
    if not {LINEAR, KNN_TOP1} & set(run.results):
        return f"it has measured neither {LINEAR} nor {KNN_TOP1}"
    other = [f"{name} {run.images.get(name, 0):,} of {wanted:,} images" for name, wanted in IMAGENET.items()]
    return "" if run.images.items() >= IMAGENET.items() else f"it was measured on other images ({', '.join(other)})"


def _settings(run: Run) -> Iterator[str]:
    return (f"{key}={value}" for key, value in run.overrides.items() if key not in _UNSAID)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f}"


def _source(experiment: str) -> str:
    if experiment in published.TWO_CROPS:
        return "page of the release"
    if experiment in published.OTHER_IMAGES:
        return "Table 3"
    return "Table 1" if experiment.startswith("swin") else "Table 4"
