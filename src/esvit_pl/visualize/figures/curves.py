"""A metric against epochs, of several trainings, with the spread over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.figures.style import COLOURS, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
"""Lines that are told apart in print and by everybody's eyes."""
Curve = tuple[Sequence[float], Sequence[float]]
"""Epochs and values."""


def draw_curves(metrics: Mapping[str, Mapping[str, Sequence[Curve]]]) -> Figure:
    """A panel for each metric, a line for each training: the mean over its seeds, and a band from least to most.

    Args:
        metrics: {what stands at the vertical axis: {name of a training: a curve for each seed}}.
    """
    panels = {label: curves for label, curves in metrics.items() if any(map(len, curves.values()))}
    if not panels:
        raise ValueError(f"draw_curves needs a curve or more, got none for {', '.join(metrics) or 'no metric'}")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(STYLES))
    look = {name: {"color": colour, "linestyle": style} for name, (colour, style) in zip(names, looks, strict=False)}
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = new_figure(4.2 * columns, 2.8 * lines + 0.4)
    cells = list(np.ravel(figure.subplots(lines, columns, squeeze=False)))
    for axes, (label, curves) in zip(cells, panels.items(), strict=False):
        for name, seeds in curves.items():
            epochs, values = over_seeds(seeds)
            if not len(epochs):
                continue
            axes.plot(epochs, values.mean(0), **look[name], marker="o" if len(epochs) <= 30 else None, markersize=3)
            if len(values) > 1:
                band = {"color": look[name]["color"], "alpha": 0.2, "linewidth": 0}
                axes.fill_between(epochs, values.min(0), values.max(0), **band)
        tidy(axes, for_figure(label))
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("epoch")
    for axes in cells[len(panels) :]:
        axes.axis("off")
    for name in names:
        number = max(len(curves.get(name, ())) for curves in panels.values())
        label = for_figure(name) + (f" ({number} seeds)" if number > 1 else "")
        cells[0].plot([], [], **look[name], label=label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def over_seeds(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Epochs that all seeds have, and (seeds epochs) values there.

    >>> over_seeds([([1, 2], [0.1, 0.2]), ([2, 3], [0.4, 0.5])])
    (array([2.]), array([[0.2],
           [0.4]]))
    """
    known = [dict(zip(*curve, strict=True)) for curve in curves]
    epochs = sorted(set.intersection(*(set(each) for each in known))) if known else []
    return np.array(epochs, dtype=float), np.array([[each[epoch] for epoch in epochs] for each in known], dtype=float)
