"""Two views of one image, to see whether a network finds the same places in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from esvit_pl.augment.recipe import Recipe
from esvit_pl.augment.views import ViewParameters, draw

_NO_CHANGE = {"jitter": 0.0, "grayscale": 0.0, "global_blur": (0.0,), "global_solarize": (0.0,), "noise": 0.0}


def pair_recipe(recipe: Recipe, *, color: bool = True) -> Recipe:
    """The recipe of two global views, with the changes of colour of `recipe` or without them."""
    off = {} if color else _NO_CHANGE
    return replace(recipe, num_global=2, num_local=0, mask_cell=0, **off)  # type: ignore[arg-type]


def draw_pair(
    recipe: Recipe, image_size: Sequence[int], *, same_box: bool = False, seed: int = 0, index: int = 0
) -> ViewParameters:
    """Parameters of both views of `pair_recipe`; with `same_box` both show the same part of the image.

    >>> recipe = pair_recipe(Recipe())
    >>> boxes = draw_pair(recipe, (480, 640), same_box=True).boxes
    >>> bool((boxes[0] == boxes[1]).all())
    True
    """
    drawn = draw(recipe.views, recipe, image_size, seed=seed, epoch=0, index=index)
    return drawn._replace(boxes=drawn.boxes[[0, 0]]) if same_box else drawn
