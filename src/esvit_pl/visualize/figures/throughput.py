"""Accuracy against images a second."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from esvit_pl.visualize.figures.style import COLOURS, GREY, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARAMETERS_OF_A_POINT = 1.3e6
"""A dot of `accuracy_against_throughput` has a square point for so many."""


class Model(NamedTuple):
    """A dot of `accuracy_against_throughput`."""

    method: str
    """What its colour stands for."""
    name: str
    """Written in the key; the dot has its number."""
    images_per_second: float
    accuracy: float
    """Fraction in 0-1."""
    parameters: int
    """Their number is the dot's area."""
    start: float | None = None
    """Accuracy before something was added, where an arrow begins."""


def accuracy_against_throughput(
    published: Sequence[Model], measured: Sequence[Model] = (), *, where: str = "this machine"
) -> Figure:
    """Linear accuracy on ImageNet-1k against images a second, one dot a model; arrows show what L_R adds to L_V.

    Args:
        published: drawn above, on the paper's V100.
        measured: drawn below, where they were measured; none leaves the lower picture out.
        where: that machine, in words.
    """
    panels = {"published: one V100": published, f"measured: {where}": measured}
    panels = {title: models for title, models in panels.items() if models}
    if not panels:
        raise ValueError("accuracy_against_throughput needs a model or more, got none")
    everything = [model for models in panels.values() for model in models]
    colours = dict(zip(dict.fromkeys(model.method for model in everything), itertools.cycle(COLOURS)))
    ranked = sorted(everything, key=lambda model: -model.accuracy)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(map(_full_name, ranked)), start=1)}
    figure = new_figure(7.6, 0.9 + 3.9 * len(panels))
    grid = np.ravel(figure.subplots(len(panels), 1, squeeze=False, sharey=True))
    for axes, (title, models) in zip(grid, panels.items(), strict=True):
        _draw_models(axes, models, colours, numbers)
        axes.set_title(title, fontsize=10)
        tidy(axes, "linear accuracy (%)")
        axes.set_xlabel("images/s")
    _key(figure, colours, numbers)
    _legend(figure, colours, arrows=any(model.start is not None for model in everything))
    return figure


def _full_name(model: Model) -> tuple[str, str]:
    return model.method, model.name


def _draw_models(
    axes: Axes, models: Sequence[Model], colours: Mapping[str, str], numbers: Mapping[tuple[str, str], int]
) -> None:
    """The dots with their numbers, and the arrows; small dots lie in front of large ones."""
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    for model in sorted(models, key=lambda model: -model.parameters):
        x, y, colour = model.images_per_second, 100 * model.accuracy, colours[model.method]
        area = model.parameters / PARAMETERS_OF_A_POINT
        axes.scatter([x], [y], s=area, color=colour, alpha=0.75, linewidths=0, zorder=2)
        look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": "0.2"}
        above = (0, 1 + area**0.5 / 2)
        number = axes.annotate(str(numbers[_full_name(model)]), (x, y), above, textcoords="offset points", **look)
        number.set_path_effects([withStroke(linewidth=2, foreground="white")])  # readable where an arrow passes
        if model.start is not None:
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": area**0.5 / 2}
            axes.annotate("", (x, y), (x, 100 * model.start), arrowprops=arrow)
            axes.update_datalim([(x, 100 * model.start)])
    axes.margins(x=0.12, y=0.08)
    axes.autoscale_view()
    low, high = axes.get_xlim()
    # Within less than a factor of 10 there may be no three of 1, 2, 5, 10, ...
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(5, min_n_ticks=3))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.grid(axis="x", color="0.92")


def _key(figure: Figure, colours: Mapping[str, str], numbers: Mapping[tuple[str, str], int]) -> None:
    """What the numbers stand for, at the right; the best model first."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=f"${number}$", color=colours[method], label=name, markersize=size)
        for (method, name), number in numbers.items()
        for size in [5 * len(str(number))]
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)


def _legend(figure: Figure, colours: Mapping[str, str], *, arrows: bool) -> None:
    """Below the pictures, in two rows: what the colours are; what the areas are, and the arrows."""
    from matplotlib.lines import Line2D

    def entry(label: str, colour: str = "none", area: float = 36, marker: str = "o") -> Line2D:
        look = {"color": colour, "marker": marker, "markersize": area**0.5, "markeredgewidth": 0}
        return Line2D([], [], linestyle="", label=label, alpha=0.75, **look)

    above = [entry(method, colour) for method, colour in colours.items()]
    sizes = {"25 M": 25e6, "100 M": 100e6, "400 M parameters": 400e6}
    below = [entry(label, "0.75", number / PARAMETERS_OF_A_POINT) for label, number in sizes.items()]
    if arrows:
        below.append(entry(r"$L_V \to L_V + L_R$", GREY, marker=r"$\uparrow$"))
    columns = itertools.zip_longest(above, below)  # a legend is filled column by column
    handles = [handle or entry("") for column in columns for handle in column]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) // 2,
        frameon=False,
        fontsize=8,
        handletextpad=0.5,
        columnspacing=1.2,
    )
