"""Images and what lies nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esvit_pl.visualize.figures.style import BLUE, new_figure, pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# q query images | k neighbours of each


def neighbours(queries: Sequence[Any], nearest: Sequence[Sequence[Any]], cosines: Sequence[Sequence[float]]) -> Figure:
    """One row for each query image: the image itself, framed, then its nearest images with their cosines.

    Args:
        queries: q of (c h w) in 0-1 or uint8, of any size.
        nearest: q x k of the same, nearest first.
        cosines: q x k, written below.
    """
    if not queries or len(queries) != len(nearest) or len(queries) != len(cosines):
        raise ValueError(
            f"neighbours needs a row of nearest images and cosines for each query, got {len(queries)} queries, "
            f"{len(nearest)} rows of images, {len(cosines)} of cosines"
        )
    columns = 1 + max(map(len, nearest))
    figure = new_figure(1.1 * columns, 1.28 * len(queries))
    grid = np.asarray(figure.subplots(len(queries), columns, squeeze=False))
    for cell in grid.flat:
        cell.axis("off")
    for row, query, images, values in zip(grid, queries, nearest, cosines, strict=True):
        _show(row[0], query, "query")
        row[0].axis("on")
        row[0].set(xticks=[], yticks=[])
        for spine in row[0].spines.values():
            spine.set(color=BLUE, linewidth=2.5)
        for cell, image, cosine in zip(row[1:], images, values, strict=False):
            _show(cell, image, f"{cosine:.2f}")
    return figure


def _show(axes: Any, image: Any, title: str) -> None:
    axes.imshow(pixels(image), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=8, pad=2)
