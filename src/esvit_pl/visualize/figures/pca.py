"""Principal components of regions as colours, beside the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esvit_pl.safe_text import for_figure
from esvit_pl.visualize.figures.style import new_figure, pixels

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


def draw_pca(images: Sequence[Any], maps: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """A column for each image: the image, and below it what each backbone makes of it.

    Args:
        images: (c h w) in 0-1 or uint8.
        maps: {name of a backbone: pictures (h w 3) as `pca_maps` gives them}.
    """
    if not images or any(len(pictures) != len(images) for pictures in maps.values()):
        raise ValueError(
            f"draw_pca needs a picture of every backbone for each image, got {len(images)} images and "
            f"{', '.join(str(len(pictures)) for pictures in maps.values()) or 'no'} pictures"
        )
    shown = [pixels(image) for image in images]
    tallest = max(picture.shape[0] / picture.shape[1] for picture in shown)
    figure = new_figure(2 * len(images), (2 * tallest + 0.25) * (1 + len(maps)))
    grid = figure.subplots(1 + len(maps), len(images), squeeze=False)
    for axes, picture in zip(grid[0], shown, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    for row, (name, pictures) in zip(grid[1:], maps.items(), strict=True):
        for axes, picture, image in zip(row, pictures, shown, strict=True):
            axes.imshow(picture, extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")
        row[0].set_title(for_figure(name), fontsize=9, loc="left")
    for axes in grid.flat:
        axes.axis("off")
    return figure
