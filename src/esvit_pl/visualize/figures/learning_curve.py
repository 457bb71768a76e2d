"""Losses and an accuracy against epochs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from esvit_pl.evaluation.names import (
    INITIAL,
    KNN_TOP1,
    PROBES,
    TRAINING_LOSSES,
    UNTRAINED,
    figure_title,
    is_training_loss,
    loss_title,
)
from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.figures.style import COLOURS, GREEN, GREY, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curve(
    rows: Sequence[Mapping[str, float]],
    baselines: Mapping[str, float] | None = None,
    *,
    losses: Sequence[str] | None = None,
    accuracy: str | None = KNN_TOP1,
    images: int | None = None,
) -> Figure:
    """Losses above, an accuracy below, against epochs (or steps, if the rows hold no epoch).

    Args:
        rows: one dict a step with "step", "epoch" and any of the metrics, as `read_metrics` of esvit_pl.loggers gives
            them.
        baselines: {name: accuracy in 0-1}, dashed lines in the lower picture; names as in results.json or free.
        losses: names of metrics for the upper picture; None is every loss of the training (`is_training_loss`), and an
            empty list leaves the upper picture out.
        accuracy: name of a fraction in 0-1 for the lower picture; None leaves it out, and so do rows without it.
        images: on how many it was measured; stands beside the accuracy.

    Raises:
        ValueError: no row holds any of these metrics.
    """
    if losses is None:
        losses = list(dict.fromkeys(name for row in rows for name in row if is_training_loss(name)))
    names = [*losses, *([accuracy] if accuracy else [])]
    curves = {name: _curve(rows, name) for name in names}
    if not any(len(steps) for steps, _ in curves.values()):
        wanted = ", ".join(names) or TRAINING_LOSSES
        raise ValueError(f"learning_curve needs rows with one of {wanted}; found none in {len(rows)} rows")
    if accuracy and not len(curves[accuracy][0]):
        accuracy = None  # images without labels
    pictures = bool(losses) + bool(accuracy)
    figure = new_figure(6.4, 3.0 * pictures)
    axes = list(np.ravel(figure.subplots(pictures, 1, sharex=True, squeeze=False)))
    per_epoch = _steps_per_epoch(rows)
    if losses:
        for name, colour in zip(losses, itertools.cycle(COLOURS)):
            steps, values = curves[name]
            if len(steps):
                _line(axes[0], steps / per_epoch, values, colour, for_figure(loss_title(name)))
        tidy(axes[0], "loss")
        if axes[0].lines:
            axes[0].legend(frameon=False)
    if accuracy:
        steps, values = curves[accuracy]
        mark = "o" if len(steps) <= 30 else None
        axes[-1].plot(steps / per_epoch, 100 * values, color=GREEN, marker=mark, markersize=4, label="pretraining")
        _baselines(axes[-1], {name: 100 * value for name, value in (baselines or {}).items()}, 100 * values)
        title = f"{PROBES['knn']} top-1 accuracy (%)" if accuracy == KNN_TOP1 else for_figure(f"{accuracy} (%)")
        tidy(axes[-1], f"{title}\nof {images:,} images" if images else title)
    axes[-1].locator_params(axis="x", integer=True)
    axes[-1].set_xlabel("epoch" if any("epoch" in row for row in rows) else "step")
    return figure


def _curve(rows: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"] + 1, row[name]) for row in rows if name in row]  # step 0 is over when its loss is known
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def _steps_per_epoch(rows: Sequence[Mapping[str, float]]) -> float:
    """Steps that are done over epochs that are begun: exact in the last row of an epoch, smaller everywhere else."""
    return max((float(row["step"] + 1) / (row["epoch"] + 1) for row in rows if "epoch" in row), default=1.0)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """The curve; where it has many points, its running mean over the noise of the steps."""
    window = len(x) // 40
    if window < 2:
        mark = "o" if len(x) == 1 else None  # a single point would be a line without length
        axes.plot(x, y, color=colour, linewidth=1.6, marker=mark, markersize=4, label=label)
        return
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.25)
    mean = np.convolve(y, np.ones(window) / window, mode="valid")
    axes.plot(x[window - 1 :], mean, color=colour, linewidth=1.8, label=label)


def _baselines(axes: Axes, baselines: Mapping[str, float], values: np.ndarray) -> None:
    """Dashed lines, each named beside the picture; names of near lines are moved apart.

    The axis shows the curve and where it began. Baselines far below are named at its lower end: from 0 on, the picture
    would hide how the curve changes.
    """
    began = [value for name, value in baselines.items() if name in (UNTRAINED, INITIAL)]
    low, high = min([*values, *began], default=0.0), max([*values, *baselines.values()], default=100.0)
    room = 0.08 * (high - low) or 1.0
    axes.set_ylim(max(low - room, 0.0), high + room)
    shown = {name: value for name, value in baselines.items() if value >= low - room}
    height, gap = -np.inf, (high - low + 2 * room) / 16
    beside = ("axes fraction", "data")
    for name, value in sorted(shown.items(), key=lambda item: item[1]):
        axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
        height = max(value, height + gap)
        words = for_figure(f"{figure_title(name)} {value:.0f}")
        axes.annotate(words, (1.01, height), xycoords=beside, va="center", fontsize=8, color=GREY)
    below = sorted(((value, name) for name, value in baselines.items() if name not in shown), reverse=True)
    if below:
        words = "\n".join(["below:", *(for_figure(f"{figure_title(name)} {value:.0f}") for value, name in below)])
        axes.annotate(words, (1.01, 0), xycoords="axes fraction", va="top", fontsize=8, color=GREY)
