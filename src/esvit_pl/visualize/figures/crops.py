"""An image with the boxes of its crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from esvit_pl.visualize.figures.style import BLUE, ORANGE, array, new_figure, pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# v views | h, w rows and columns in pixels


def crops(
    image: Any,
    boxes: Any,
    views: Sequence[Any],
    *,
    num_global: int = 2,
    flipped: Sequence[bool] | None = None,
    cell: int | None = None,
) -> Figure:
    """An image with the boxes of its crops, and the crops as the network sees them.

    Args:
        image: (c h w) in 0-1 or uint8, or anything of that shape, which is stretched to its own range.
        boxes: (v 4), x, y, w, h of every crop in the image, 0-1.
        views: v of (c h w), global ones first, of any size; normalised ones are stretched to their own range.
        num_global: how many are global.
        flipped: v, which views were mirrored; said in their titles.
        cell: side of a region in pixels, for lines between the regions of each view.
    """
    from matplotlib.patches import Rectangle

    boxes = array(boxes)
    if boxes.shape != (len(views), 4):
        raise ValueError(f"crops needs boxes of shape ({len(views)}, 4), one for each view, got {boxes.shape}")
    columns = 5 if len(views) > 4 else max(len(views), 1)
    lines = -(-len(views) // columns)
    figure = new_figure(3.2 + 1.5 * columns, max(3.4, 1.75 * lines))
    whole, right = np.ravel(figure.subfigures(1, 2, squeeze=False, width_ratios=[3.2, 1.5 * columns]))
    picture = pixels(image)
    height, width = picture.shape[:2]
    axes = whole.subplots()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_title("image", fontsize=9)
    axes.axis("off")
    grid = list(right.subplots(lines, columns, squeeze=False).flat)
    for place in grid:
        place.axis("off")
    for index, (view, box) in enumerate(zip(views, boxes, strict=True)):
        is_global = index < num_global
        colour = BLUE if is_global else ORANGE
        x, y, w, h = box * [width, height, width, height]
        corner = (x - 0.5, y - 0.5)  # imshow puts the first pixel's centre at 0
        axes.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=colour, linewidth=2 if is_global else 1.2))
        name = _crop_name(index, num_global)
        tag = {"color": "white", "fontsize": 7, "bbox": {"facecolor": colour, "edgecolor": "none", "pad": 1}}
        axes.annotate(name[0] + name.split()[1], corner, (2, -2), textcoords="offset points", va="top", **tag)
        place = grid[index]
        place.imshow(pixels(view), cmap="gray", vmin=0, vmax=1)
        place.set_title(name + (", mirrored" if flipped is not None and bool(flipped[index]) else ""), fontsize=8)
        place.axis("on")
        place.set(xticks=[], yticks=[])
        side = int(view.shape[-1])
        for line in range(cell or side, side, cell or side):
            place.axhline(line - 0.5, color="white", linewidth=0.6)
            place.axvline(line - 0.5, color="white", linewidth=0.6)
        for spine in place.spines.values():
            spine.set(color=colour, linewidth=2)
    return figure


def _crop_name(index: int, num_global: int) -> str:
    return f"global {index + 1}" if index < num_global else f"local {index - num_global + 1}"
