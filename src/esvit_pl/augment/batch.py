"""The batch that a training loader gives and that an objective receives."""

# b images | v views | c channels | h, w rows and columns | p columns of `augment.PARAMS`

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """The views of b images, and how they were made. Only `views` is always there.

    >>> import torch
    >>> batch: Batch = {"views": [torch.zeros(8, 3, 224, 224)] * 2 + [torch.zeros(8, 3, 96, 96)] * 8}
    >>> len(batch["views"])
    10
    """

    views: list[Tensor]
    """v times (b c h w), the global views first; normalised."""
    label: Tensor
    """(b,) long; absent where the data have no labels."""
    index: Tensor
    """(b,) long: which image of the data set each row is."""
    boxes: Tensor
    """(b v 4): x, y, width and height of each crop, in 0-1 of the image."""
    flipped: Tensor
    """(b v) bool: whether the crop was mirrored."""
    params: Tensor
    """(b v p): the other random numbers that a view was made with; the columns are named in `augment.PARAMS`."""
    masks: list[Tensor | None]
    """For every view (b h w) bool on the grid of the backbone's last stage, True where the image is hidden, or None for
    a view without a mask. Absent where the recipe draws no masks."""
