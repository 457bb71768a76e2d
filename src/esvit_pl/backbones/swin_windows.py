"""How a map of any size falls into Swin's windows, and which of their positions hold a token.

A map is padded right and bottom to a multiple of the window, then rolled. The tokens of a window then lie in some of
its rows and some of its columns, and most windows have theirs in the same ones: these make a `WindowGroup`. Without the
padding the tokens keep their order, so the unpadded map can be rolled and cut into rectangles, one for each group.
"""

# h, w rows and columns of a map | p, q the same after padding | s side of a window | w2 = s * s | n tokens of a window

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, product
from math import isqrt
from typing import NamedTuple, cast

import torch
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor

from esvit_pl.backbones.constants import cached_constant


class Strip(NamedTuple):
    """Neighbouring windows of one axis whose tokens lie at the same positions."""

    windows: int
    positions: tuple[int, ...]
    """Where the tokens of each window lie; the other positions are padding."""

    @property
    def length(self) -> int:
        """Tokens of all its windows along the axis."""
        return self.windows * len(self.positions)


class WindowGroup(NamedTuple):
    """Windows whose tokens lie at the same positions: a rectangle of the rolled map."""

    rows: Strip
    columns: Strip
    position_index: Tensor
    """(n w2): rows of the relative position table for every token and every position, the tokens' positions first."""
    mask: Tensor | None
    """(windows 1 n w2): -100 where a shift separates two tokens, else 0; the axis of length 1 is for the heads."""

    @property
    def num_windows(self) -> int:
        return self.rows.windows * self.columns.windows


class WindowPlan(NamedTuple):
    """All windows of a map."""

    roll: tuple[int, int]
    """Rows and columns by which the unpadded map is rolled up and left."""
    rows: tuple[Strip, ...]
    columns: tuple[Strip, ...]
    groups: tuple[tuple[WindowGroup, ...], ...]
    """One for every strip of rows and every strip of columns."""


@cached_constant
def window_plan(
    height: int, width: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> WindowPlan:
    """The windows of a map of (h, w) tokens; computed once for each size and kept.

    Args:
        height, width: of the map before padding, in tokens.
        window, shift: in tokens.
        device, dtype: of the mask; the position index is long.
    """
    rows, columns = strips(height, window, shift), strips(width, window, shift)
    # Tensors that are kept must not be inference tensors: the next to ask may want gradients.
    with torch.inference_mode(False), torch.no_grad():
        index = get_relative_position_index(window, window, device=device)
        mask = _grid_of_masks(height, width, window, shift, device, dtype) if shift else None
        groups = tuple(
            tuple(
                _group(row, column, index, mask[top][:, left] if mask is not None else None)
                for left, column in _slices(columns)
            )
            for top, row in _slices(rows)
        )
    return WindowPlan((min(shift, height), min(shift, width)), rows, columns, groups)


def strips(length: int, window: int, shift: int) -> tuple[Strip, ...]:
    """The windows along an axis of `length` tokens that is padded and rolled by `shift`, in the order of the roll."""
    padded = _padded(length, window)
    tokens = [
        tuple(i for i in range(window) if (first + i + shift) % padded < length) for first in range(0, padded, window)
    ]
    return tuple(Strip(len(list(same)), positions) for positions, same in groupby(tokens))


def shifted_window_mask(
    height: int, width: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(windows w2 w2): 0 between tokens that were neighbours before the roll, -100 between the others (as released).

    The roll brings the far edges of a map of (p, q) into one window; tokens of different origin must not see each
    other.
    """
    origin = torch.zeros(height, width, device=device)
    parts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for label, (rows, columns) in enumerate(product(parts, parts)):
        origin[rows, columns] = label
    origin = origin.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2).flatten(2).flatten(0, 1)
    strangers = origin[:, :, None] != origin[:, None, :]
    return torch.zeros(strangers.shape, device=device, dtype=dtype).masked_fill_(strangers, -100.0)


def _padded(length: int, window: int) -> int:
    return length + -length % window


def _grid_of_masks(
    height: int, width: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(p/s q/s w2 w2) mask of each window."""
    padded = (_padded(height, window), _padded(width, window))
    return cast(
        Tensor, shifted_window_mask(*padded, window, shift, device, dtype).unflatten(0, (-1, padded[1] // window))
    )


def _slices(strips: tuple[Strip, ...]) -> Iterator[tuple[slice, Strip]]:
    """Each strip with the numbers of its windows along the axis."""
    first = 0
    for strip in strips:
        yield slice(first, first + strip.windows), strip
        first += strip.windows


def _group(rows: Strip, columns: Strip, index: Tensor, mask: Tensor | None) -> WindowGroup:
    """With its part of the position index (w2 w2), and of the masks of its windows (rows columns w2 w2)."""
    window = isqrt(len(index))
    tokens = [row * window + column for row, column in product(rows.positions, columns.positions)]
    order = tokens + sorted(set(range(window**2)) - set(tokens))
    hidden = None if mask is None else mask.flatten(0, 1)[:, None, tokens][..., order]
    return WindowGroup(rows, columns, index[tokens][:, order], hidden)
