"""The first three principal components of regions as colours: what a backbone calls similar gets similar colours."""

# h, w rows and columns of a map | d channels | n regions of all images

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from esvit_pl.augment import EvaluationTransform
from esvit_pl.backbones import Backbone
from esvit_pl.visualize.looking import Picture, looked_at

CLIP = 0.02
"""Share of the values at either end that a colour does not tell apart."""


def pca_maps(
    backbone: Backbone,
    images: Sequence[Picture],
    *,
    foreground: bool = False,
    side: int | None = None,
    transform: EvaluationTransform | None = None,
) -> list[np.ndarray]:
    """A picture (h w 3) in 0-1 of each image's regions, with the same components and scale for all.

    Args:
        images: see `attention_maps`.
        foreground: tell it from the background first, and show its components alone; the background is black.
        side: pixels of an image's shorter side for the backbone; larger ones give finer pictures.
        transform: how images are prepared; None: `backbone.transform`.
    """
    seen = [looked_at(backbone, image, backbone, side=side, transform=transform)[0] for image in images]
    maps = [features.regions[0].float().cpu().unflatten(0, features.grid).numpy() for features in seen]
    masks = foregrounds(maps) if foreground else [np.ones(each.shape[:2], dtype=bool) for each in maps]
    return colours(maps, masks)


def components(regions: np.ndarray, n: int) -> np.ndarray:
    """(n_regions d) -> (n_regions n) coordinates on the first principal axes, with fixed signs.

    The sign of an axis means nothing. It is chosen such that the coordinates farthest from 0 are positive, so that the
    same features always get the same colours.
    """
    centred = (regions - regions.mean(0)).astype(np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(regions), n))
    found[:, : len(axes[:n])] = centred @ axes[:n].T
    skew = (found**3).sum(0)
    return found * np.where(skew < 0, -1, 1)


def colours(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Maps (h w d) -> pictures (h w 3) in 0-1; what is not in the masks (h w) is black."""
    inside = np.concatenate([each[mask] for each, mask in zip(maps, masks, strict=True)])
    if not len(inside):
        return [np.zeros((*mask.shape, 3)) for mask in masks]
    found = components(inside, 3)
    low, high = np.quantile(found, [CLIP, 1 - CLIP], axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    pictures, start = [], 0
    for mask in masks:
        picture = np.zeros((*mask.shape, 3))
        picture[mask] = scaled[start : (start := start + int(mask.sum()))]
        pictures.append(picture)
    return pictures


def foregrounds(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Bool masks (h w): the side of the first component that lies less on the borders of the images.

    The component is cut where the variance between both sides is largest (Otsu).
    """
    first = components(np.concatenate([each.reshape(-1, each.shape[-1]) for each in maps]), 1)[:, 0]
    high = first > otsu(first)
    masks, start = [], 0
    for each in maps:
        number = each.shape[0] * each.shape[1]
        masks.append(high[start : start + number].reshape(each.shape[:2]))
        start += number
    border = np.concatenate([np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]) for mask in masks])
    return masks if border.mean() <= high.mean() else [~mask for mask in masks]


def otsu(values: np.ndarray) -> float:
    """The threshold with the largest variance between what lies below and what lies above.

    >>> otsu(np.array([0.0, 1.0, 9.0, 10.0]))
    5.0
    """
    ordered = np.sort(values)
    below = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)[:-1]
    above = len(ordered) - below
    between = below * above * (sums / below - (ordered.sum() - sums) / above) ** 2
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)
