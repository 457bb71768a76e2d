"""Which regions of two views belong together as a backbone sees it, and which of these pairs are right."""

# k pairs | c channels | h, w rows and columns of a map | x, y pixels of a view, from its left and its top

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.augment import EvaluationTransform, draw_pair, evaluation_view, make_views, pair_recipe
from esvit_pl.backbones import Backbone, Features
from esvit_pl.metrics import RegionMap, correspond
from esvit_pl.visualize.looking import Picture, bytes_of, device_of, still, transform_of

SHOWN = 224
"""Pixels of a view that is to be looked at, at least; the network may see a smaller one."""


class MatchedViews(NamedTuple):
    """Two views, and the most similar pairs of their regions, best first."""

    views: tuple[Tensor, Tensor]
    """(c h w) in 0-1, to look at."""
    starts: np.ndarray
    """(k 2) x, y of regions of the first view."""
    ends: np.ndarray
    """(k 2) of their matches in the second view."""
    cosines: np.ndarray
    """(k)"""
    steps: np.ndarray | None
    """(k) cells from the match to the right region: 0 is right, 1 one of the 8 around it; -1: the place lies outside
    the second view. None where nobody knows: two different pictures."""
    likest: np.ndarray
    """(2 2 2) x, y in each view: the region most like its own global feature, then the one most like the other's."""


def matched_views(
    backbone: Backbone,
    image: Picture,
    other: Picture | None = None,
    *,
    k: int = 10,
    same_box: bool = False,
    color: bool = True,
    seed: int = 0,
    transform: EvaluationTransform | None = None,
) -> MatchedViews:
    """Match the regions of two views of one picture, or of two pictures.

    Args:
        backbone: with the `transform` of its training.
        image: a file, a PIL image, or a uint8 tensor (3 h w).
        other: the second picture; None makes two views of the first.
        k: how many pairs; fewer where the first view has fewer regions.
        same_box, color, seed: of two views of one picture: the same part of it; with changes of colour; what is drawn.
        transform: how images are prepared; None: `backbone.transform`.

    Raises:
        ValueError: nothing says how images are prepared.
    """
    transform = transform_of(backbone, transform)
    pixels = [bytes_of(picture, transform) for picture in (image, other) if picture is not None]
    if other is None:
        recipe = pair_recipe(transform.recipe, color=color)
        drawn = draw_pair(recipe, pixels[0].shape[-2:], same_box=same_box, seed=seed)
        prepared = make_views(recipe, pixels[0], drawn)
        finer = drawn._replace(size=tuple(max(side, SHOWN) for side in drawn.size))
        shown = make_views(recipe, pixels[0], finer, normalized=False)
        boxes, flipped = drawn.boxes, drawn.flipped
    else:
        prepared = [transform(picture) for picture in pixels]
        times = max(1, round(SHOWN / transform.recipe.eval_crop))
        sides = {name: times * getattr(transform.recipe, name) for name in ("eval_resize", "eval_crop")}
        shown = [evaluation_view(replace(transform.recipe, **sides), picture, normalized=False) for picture in pixels]
        boxes, flipped = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([False, False])
    with still(backbone):
        first, second = (backbone(view[None].to(device_of(backbone))) for view in prepared)
    found = correspond(_map(first, boxes[:1], flipped[:1]), _map(second, boxes[1:], flipped[1:]))
    best = found.cosine[0].argsort(descending=True, stable=True)[:k]
    matches = found.match[0, best]
    steps: np.ndarray | None = None
    if other is None:
        w = second.grid[1]
        away = (torch.stack([matches // w, matches % w], -1) - found.place[0, best].floor()).abs().amax(-1)
        steps = torch.where(found.inside[0, best], away, -1).int().numpy()
    sizes = [(view.shape[-2], view.shape[-1]) for view in shown]
    return MatchedViews(
        (shown[0], shown[1]),
        middle(best, first.grid, sizes[0]),
        middle(matches, second.grid, sizes[1]),
        found.cosine[0, best].numpy(),
        steps,
        np.stack(
            [
                middle(torch.stack([_likest(seen, feature) for feature in pair]), seen.grid, size)
                for seen, pair, size in zip((first, second), ((first, second), (second, first)), sizes, strict=True)
            ]
        ),
    )


def middle(regions: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(k) numbers of regions -> (k 2) x, y of their middles in a view of (h, w) pixels.

    >>> middle(torch.tensor([0, 3]), (2, 2), (20, 40)).tolist()
    [[10.0, 5.0], [30.0, 15.0]]
    """
    rows, columns = regions // grid[1], regions % grid[1]
    x, y = (columns + 0.5) * size[1] / grid[1], (rows + 0.5) * size[0] / grid[0]
    return torch.stack([x, y], dim=-1).double().numpy()


def _map(features: Features, boxes: Tensor, flipped: Tensor) -> RegionMap:
    return RegionMap(features.regions.float().cpu(), features.grid, boxes, flipped)


def _likest(seen: Features, asked: Features) -> Tensor:
    """The region of one view that is most like the global feature of one."""
    return F.cosine_similarity(seen.regions[0].float(), asked.pooled.float(), dim=-1).argmax().cpu()
