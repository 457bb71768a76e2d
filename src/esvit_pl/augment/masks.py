"""Which patches of a view are hidden from the student (iBOT, SimMIM): random numbers, and no pixel."""

# h, w rows and columns of the grid of cells

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from esvit_pl.augment.recipe import Recipe, ViewRecipe

TRIES = 10
"""Rectangles that are tried before a mask of blocks ends with fewer cells than it should have."""
ASPECT = (0.3, 1 / 0.3)
"""Height over width of a block (Bao et al., arXiv 2106.08254)."""


def draw_mask(view: ViewRecipe, recipe: Recipe, generator: np.random.Generator) -> Tensor | None:
    """(h w) bool, True where the view is hidden; None for a view without masks. Sides are rounded up.

    >>> recipe = Recipe(mask_cell=32, mask_chance=1.0, mask_ratio=(0.5, 0.5), mask_shape="cells")
    >>> mask = draw_mask(recipe.views[0], recipe, np.random.default_rng(0))
    >>> tuple(mask.shape), int(mask.sum())
    ((7, 7), 25)
    """
    if not view.mask_cell:
        return None
    side = -(-view.size // view.mask_cell)
    mask = np.zeros((side, side), dtype=bool)
    chance, share = generator.random(2)
    if chance < recipe.mask_chance:
        low, high = recipe.mask_ratio
        hidden = (low + (high - low) * share) * side * side
        if recipe.mask_shape == "cells":  # rounded up, as SimMIM does, and down for blocks, as iBOT
            mask.flat[generator.permutation(mask.size)[: math.ceil(hidden)]] = True
        else:
            _hide_blocks(mask, int(hidden), generator)
    return torch.from_numpy(mask)


def _hide_blocks(mask: np.ndarray, count: int, generator: np.random.Generator) -> None:
    """Hide rectangles, in place, until `count` cells are hidden or none of so many tries fits."""
    side, smallest = len(mask), max((len(mask) // 3) ** 2, 1)
    tries = 0
    while (left := count - int(mask.sum())) > 0 and tries < TRIES:
        tries += 1
        uniforms = generator.random(4)
        area = smallest + (max(left, smallest) - smallest) * uniforms[0]
        aspect = math.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * uniforms[1])
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height <= side and 0 < width <= side):
            continue
        top, left_edge = int(uniforms[2] * (side - height + 1)), int(uniforms[3] * (side - width + 1))
        block = mask[top : top + height, left_edge : left_edge + width]
        if 0 < block.size - int(block.sum()) <= left:
            block[:] = True
            tries = 0
