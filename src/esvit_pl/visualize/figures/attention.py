"""What a place of an image attends to, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.attention import MASS, entropies, heaviest, sharpest
from esvit_pl.visualize.figures.style import BLUE, GREY, ORANGE, array, new_figure, pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# m heads | h, w rows and columns of a token map


def draw_attention(
    image: Any,
    maps: Any,
    query: tuple[float, float] | None,
    *,
    heads: int | None = 6,
    mass: float = MASS,
) -> Figure:
    """The sharpest heads of one block over the image: `attention_panels` with one row."""
    return attention_panels([("", image, maps, query)], heads=heads, mass=mass)


def attention_panels(
    rows: Sequence[tuple[str, Any, Any, tuple[float, float] | None]], *, heads: int | None = 6, mass: float = MASS
) -> Figure:
    """A row for each query or backbone: the image with the query, its sharpest heads, and the entropies of all heads.

    A line goes round the places that hold `mass` of a head's attention. Brightness is relative to the head's largest
    weight.

    Args:
        rows: (title, image (c h w), maps (m h w) as `attention_maps` gives them, query x, y in pixels or None).
        heads: so many of lowest entropy; None: all.
        mass: share inside the line.
    """
    if not rows:
        raise ValueError("attention_panels needs a row or more, got none")
    shown = [sharpest(array(maps), heads) for _, _, maps, _ in rows]
    columns = 2 + max(map(len, shown))
    pictures = [pixels(image) for _, image, _, _ in rows]
    tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    figure = new_figure(1.3 * columns, (1.3 * tallest + 0.45) * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for cells, (title, _, maps, query), picture, best in zip(grid, rows, pictures, shown, strict=True):
        maps = array(maps)
        for cell in cells[:-1]:
            cell.axis("off")
        cells[0].imshow(picture, cmap="gray", vmin=0, vmax=1)
        cells[0].set_title(for_figure(title or "query"), fontsize=8)
        _mark(cells[0], query)
        for cell, head in zip(cells[1:], best, strict=False):
            _overlay(cell, picture, maps[head], mass)
            _mark(cell, query, size=5)
            cell.set_title(f"head {head + 1}", fontsize=8)
        _bars(cells[-1], maps, best)
    return figure


def _overlay(axes: Axes, picture: np.ndarray, weights: np.ndarray, mass: float) -> None:
    """The image in pale grey, the map over it, and a line round what is heaviest."""
    height, width = picture.shape[:2]
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)
    grey = picture if picture.ndim == 2 else picture @ [0.299, 0.587, 0.114]
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
    strength = weights / max(weights.max(), 1e-30)
    axes.imshow(strength, cmap="inferno", alpha=0.25 + 0.6 * strength, extent=frame, vmin=0, vmax=1)
    for xs, ys in outline(heaviest(weights, mass), width, height):
        axes.plot(xs, ys, color="white", linewidth=1.2)
    axes.set(xlim=frame[:2], ylim=frame[2:])


def outline(mask: np.ndarray, width: float, height: float) -> list[tuple[list[float], list[float]]]:
    """Lines round a mask (h w) over a picture: [(two x, two y)], in pixels with their centres at whole numbers."""
    padded = np.pad(mask, 1)
    down, right = (np.argwhere(np.diff(padded.astype(int), axis=axis)) for axis in (0, 1))
    rows, columns = mask.shape
    lines = [((column - 1, column), (row, row)) for row, column in down]
    lines += [((column, column), (row - 1, row)) for row, column in right]
    return [([x * width / columns - 0.5 for x in xs], [y * height / rows - 0.5 for y in ys]) for xs, ys in lines]


def _mark(axes: Axes, query: tuple[float, float] | None, size: float = 9) -> None:
    if query is not None:
        axes.plot(*query, marker="X", color=ORANGE, markeredgecolor="black", markersize=size)


def _bars(axes: Axes, maps: np.ndarray, best: Sequence[int]) -> None:
    """Entropies of all heads, sharpest first; a full bar is a uniform map."""
    values = entropies(maps)
    order = sharpest(maps, None)
    colours = [BLUE if head in best else GREY for head in order]
    axes.barh(range(len(order)), values[order], color=colours, height=0.7)
    axes.set_xlim(0, np.log(maps[0].size))
    axes.invert_yaxis()
    every = -(-len(order) // 7)  # as many labels as stand beside a landscape without touching
    axes.set_yticks(range(0, len(order), every), [str(head + 1) for head in order[::every]], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("entropy (nats)", fontsize=7)
    axes.set_title("heads", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
