"""Images and what lies nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.figures.style import BLUE, GREEN, ORANGE, RED, new_figure, pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from esvit_pl.visualize.regions import NearRegion

# q query images | k neighbours of each

_LETTERS = 10


def neighbours(
    queries: Sequence[Any],
    nearest: Sequence[Sequence[Any]],
    cosines: Sequence[Sequence[float]],
    *,
    names: Sequence[Sequence[str]] | None = None,
    titles: Sequence[str] | None = None,
    right: Sequence[Sequence[bool]] | None = None,
) -> Figure:
    """One row for each query image: the image itself, framed, then its nearest images with their cosines.

    Args:
        queries: q of (c h w) in 0-1 or uint8, of any size.
        nearest: q x k of the same, nearest first.
        cosines: q x k, written above.
        titles: q, above the queries, such as whose neighbours they are.
        names: q x k, such as classes, beside the cosines; cut after a few letters.
        right: q x k, whether a neighbour is a right one: framed in green if it is, in red and dashes if not.
    """
    if not queries or len(queries) != len(nearest) or len(queries) != len(cosines):
        raise ValueError(
            f"neighbours needs a row of nearest images and cosines for each query, got {len(queries)} queries, "
            f"{len(nearest)} rows of images, {len(cosines)} of cosines"
        )
    if right is not None and [*map(len, right)] != [*map(len, nearest)]:
        raise ValueError(
            f"neighbours needs right= with an answer for each nearest image, {[*map(len, nearest)]} of them, got "
            f"{[*map(len, right)]}"
        )
    columns = 1 + max(map(len, nearest))
    figure = new_figure(1.1 * columns, 1.28 * len(queries))
    grid = np.asarray(figure.subplots(len(queries), columns, squeeze=False))
    for cell in grid.flat:
        cell.axis("off")
    names = names or [[""] * len(images) for images in nearest]
    titles = titles or ["query"] * len(queries)
    for row, query, title, images, values, words in zip(grid, queries, titles, nearest, cosines, names, strict=True):
        _show(row[0], query, for_figure(title))
        _frame(row[0], BLUE)
        for cell, image, cosine, word in zip(row[1:], images, values, words, strict=False):
            _show(cell, image, f"{cosine:.2f} {_cut(for_figure(word))}".rstrip())
    for row, answers in zip(grid, [] if right is None else right, strict=False):
        for cell, is_right in zip(row[1:], answers, strict=False):
            _frame(cell, GREEN if is_right else RED, "-" if is_right else "--")
    return figure


def draw_near_regions(rows: Sequence[tuple[Any, tuple[float, float], Sequence[tuple[Any, NearRegion]]]]) -> Figure:
    """One row for each place of an image: the image with the place, then the images with the regions most like it.

    Args:
        rows: (image (c h w), x, y of the place in pixels, [(image (c h w) as the backbone saw it, its region)]).
    """
    from matplotlib.patches import Rectangle

    if not rows or not all(found for _, _, found in rows):
        raise ValueError("draw_near_regions needs a place or more, and regions that are like it")
    columns = 1 + max(len(found) for _, _, found in rows)
    figure = new_figure(1.5 * columns, 1.75 * len(rows))
    grid = np.asarray(figure.subplots(len(rows), columns, squeeze=False))
    for cell in grid.flat:
        cell.axis("off")
    for cells, (image, query, found) in zip(grid, rows, strict=True):
        _show(cells[0], image, "query")
        cells[0].plot(*query, marker="X", color=ORANGE, markeredgecolor="black", markersize=9)
        for cell, (near, region) in zip(cells[1:], found, strict=False):
            _show(cell, near, f"{region.cosine:.2f}")
            height, width = (side / number for side, number in zip(near.shape[-2:], region.grid, strict=True))
            corner = (region.cell[1] * width - 0.5, region.cell[0] * height - 0.5)
            cell.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=ORANGE, linewidth=2))
    return figure


def _cut(word: str) -> str:
    return word if len(word) <= _LETTERS else f"{word[: _LETTERS - 1]}…"


def _frame(axes: Any, colour: str, style: str = "-") -> None:
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=colour, linewidth=2.5, linestyle=style)


def _show(axes: Any, image: Any, title: str) -> None:
    axes.imshow(pixels(image), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=8, pad=2)
