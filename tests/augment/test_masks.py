from __future__ import annotations

import numpy as np
import pytest
import torch

from esvit_pl.augment import Recipe, draw
from esvit_pl.augment.masks import draw_mask


def masks(recipe: Recipe, number: int = 200) -> list[torch.Tensor]:
    generator = np.random.default_rng(0)
    drawn = [draw_mask(recipe.views[0], recipe, generator) for _ in range(number)]
    return [mask for mask in drawn if mask is not None]


def test_single_cells_are_hidden_in_the_asked_number():
    recipe = Recipe(mask_cell=32, mask_chance=1.0, mask_ratio=(0.6, 0.6), mask_shape="cells")
    drawn = masks(recipe)
    assert {tuple(mask.shape) for mask in drawn} == {(7, 7)}
    assert {int(mask.sum()) for mask in drawn} == {30}  # 0.6 * 49 = 29.4
    assert 0.5 < torch.stack(drawn).float().mean(0).min() < torch.stack(drawn).float().mean(0).max() < 0.72


def test_blocks_hide_at_most_the_asked_number_in_connected_pieces():
    drawn = masks(Recipe(mask_cell=16, mask_chance=1.0, mask_ratio=(0.3, 0.3)))
    counts = torch.tensor([int(mask.sum()) for mask in drawn])
    assert counts.max() <= 58  # 0.3 * 196 = 58.8
    assert counts.float().mean() > 45
    pairs = torch.stack([(mask[:, 1:] & mask[:, :-1]).sum() / mask.sum() for mask in drawn if mask.any()])
    assert pairs.mean() > 0.6  # neighbours are hidden together; single cells have 0.3


def test_so_many_views_are_masked_at_all():
    share = np.mean([bool(mask.any()) for mask in masks(Recipe(mask_cell=32, mask_chance=0.5, mask_ratio=(0.3, 0.3)))])
    assert 0.4 < share < 0.6


def test_masks_belong_to_global_views_and_move_no_other_number():
    plain, masked = Recipe(), Recipe(mask_cell=32)
    without, drawn = (draw(r.views, r, (300, 400), seed=1, epoch=2, index=3) for r in (plain, masked))
    assert torch.equal(without.boxes, drawn.boxes)
    assert torch.equal(without.params, drawn.params)
    assert [mask is not None for mask in drawn.masks] == [True] * 2 + [False] * 8
    again = draw(masked.views, masked, (300, 400), seed=1, epoch=2, index=3)
    assert all(torch.equal(a, b) for a, b in zip(drawn.masks[:2], again.masks[:2], strict=True))
    assert without.masks == (None,) * 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_cell": -1}, "mask_cell must be a side in pixels, or 0 for no masks, got -1"),
        ({"mask_shape": "stars"}, "mask_shape must be 'cells' or 'blocks', got 'stars'"),
        ({"mask_ratio": (0.5, 1.5)}, "mask_ratio must be two numbers"),
        ({"mask_chance": 2.0}, "mask_chance must be a probability"),
    ],
)
def test_impossible_masks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)
