"""Means over what is hidden from the student, for masked prediction."""

# b images | n regions

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_masked(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over each image's masked regions, then over images. An image without any counts as 0 (iBOT).

    Args:
        values: (b n).
        mask: (b n) bool.

    >>> mask = torch.tensor([[True, True, False], [False, False, False]])
    >>> float(mean_of_masked(torch.tensor([[1.0, 3.0, 9.0], [9.0, 9.0, 9.0]]), mask))  # (2 + 0) / 2
    1.0
    """
    hidden = mask.to(values.dtype)
    return ((values * hidden).sum(-1) / hidden.sum(-1).clamp_min(1)).mean()


def cells(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """(b c h w) -> (b n c i j): the pixels under each region, row by row.

    Raises:
        ValueError: the sides are no multiples of the grid's.

    >>> cells(torch.arange(16.0).view(1, 1, 4, 4), grid=(2, 2))[0, 1, 0]
    tensor([[2., 3.],
            [6., 7.]])
    """
    (rows, columns), (height, width) = grid, images.shape[2:]
    if height % rows or width % columns:
        raise ValueError(
            f"views of {height} x {width} px have no whole pixels under each of {rows} x {columns} regions; set "
            "augment.global_size to a multiple of the region"
        )
    cut = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (b c rows i columns j)
    pixels: Tensor = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return pixels


def color_classes(images: Tensor, grid: tuple[int, int], *, bits: int = 3) -> Tensor:
    """(b c h w) values in 0-1 -> (b n): the mean colour under each region as a class, `bits` for each channel.

    >>> color_classes(torch.full((1, 3, 4, 4), 1.0), grid=(1, 1))  # the last of 512
    tensor([[511]])
    """
    steps = 2**bits
    levels = (cells(images, grid).mean((-2, -1)) * steps).long().clamp(0, steps - 1)  # (b n c)
    weights = steps ** torch.arange(levels.shape[-1], device=images.device)
    classes: Tensor = (levels * weights).sum(-1)
    return classes
