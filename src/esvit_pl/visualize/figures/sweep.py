"""The runs of a sweep, one dot each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from esvit_pl.evaluation.names import is_accuracy
from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.figures.style import BLUE, GREY, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sweep(
    groups: Mapping[str, Sequence[float]],
    metric: str,
    *,
    smaller_is_better: bool = False,
    untrained: Sequence[float] = (),
) -> Figure:
    """One dot a run, one line for each group of runs, the best mean on top; a tick marks the mean of several runs.

    Dots that would hide one another stand above one another.

    Args:
        groups: {settings in words: the metric of each run}, the runs of a group differing in nothing but the seed. A
            group without a value is named at the bottom.
        metric: its name; accuracies (``knn/top1``) are shown in %.
        smaller_is_better: for losses.
        untrained: the metric before training, of each run that has measured it; a band from the lowest to the highest.
    """
    if not any(len(values) for values in groups.values()):
        raise ValueError(f"sweep needs a value of {metric}, got {len(groups)} groups without any")
    factor = 100 if is_accuracy(metric) else 1
    order = sorted((name for name in groups if len(groups[name])), key=lambda name: float(np.mean(groups[name])))
    names = [*(order if smaller_is_better else reversed(order)), *(name for name in groups if not len(groups[name]))]
    figure = new_figure(4.2 + 0.075 * min(max(map(len, names)), 70), 1.1 + 0.3 * len(names))
    axes = figure.subplots()
    everything = factor * np.concatenate([np.asarray(values, dtype=float) for values in (*groups.values(), untrained)])
    touching = (everything.max() - everything.min()) / 60  # about a dot's width
    if len(untrained):
        lowest, highest = factor * min(untrained), factor * max(untrained)
        axes.axvspan(lowest, highest, color=GREY, alpha=0.35, linewidth=1, label="untrained")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9, borderpad=0)
    for height, name in enumerate(names):
        values = factor * np.asarray(groups[name], dtype=float)
        axes.plot(values, height + apart(values, touching), "o", color=BLUE, alpha=0.6, markersize=6, markeredgewidth=0)
        if len(values) > 1:
            axes.plot([values.mean()], [height], "|", color=RED, markersize=15, markeredgewidth=2)
        elif not len(values):
            axes.annotate("no value", (0.01, height), xycoords=("axes fraction", "data"), va="center", color=GREY)
    axes.set_yticks(range(len(names)), [for_figure(_cut(name, 70)) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first one on top
    axes.set_xlabel(for_figure(f"{metric} (%)" if factor == 100 else metric))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def apart(values: np.ndarray, touching: float, step: float = 0.16) -> np.ndarray:
    """How far each dot stands above or below its line, so that none within `touching` of another is hidden.

    >>> apart(np.array([5.0, 5.0, 7.0]), touching=0.5).tolist()
    [-0.08, 0.08, 0.0]
    """
    heights = np.zeros(len(values))
    order = np.argsort(values, kind="stable")
    for run in np.split(order, np.flatnonzero(np.diff(values[order]) > touching) + 1):
        heights[run] = step * (np.arange(len(run)) - (len(run) - 1) / 2)
    return heights.clip(-0.4, 0.4)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
