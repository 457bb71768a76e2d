"""What a place of an image attends to: maps over the image, the part that holds most of the mass, sharp heads first."""

# b images | m heads | h, w rows and columns of a token map | q queries

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from esvit_pl.augment import EvaluationTransform
from esvit_pl.backbones import Attention, Backbone
from esvit_pl.visualize.looking import Picture, Point, cell_of, looked_at

MASS = 0.6
"""Share of a map's mass inside its mask, as in the paper's Figure 7."""


def attention_maps(
    backbone: Backbone,
    image: Picture,
    query: Point | Sequence[Point] | None,
    *,
    block: int = -1,
    side: int | None = None,
    transform: EvaluationTransform | None = None,
) -> np.ndarray:
    """What each head of a block attends to, from one place of an image or from several.

        maps = esvit_pl.visualize.attention_maps(backbone, "photo.jpg", (80, 120))

    Args:
        image: a file, a PIL image, a uint8 tensor (3 h w), or a prepared float tensor (c h w).
        query: x, y in pixels of the image; or several of them. None: the token before the map (a ViT's class token,
            the first global token of ViL).
        block: counted over all stages; -1 is the last.
        side: pixels of the image's shorter side for the backbone; None is the backbone's own size.
        transform: how images are prepared; None: `backbone.transform`.

    Returns:
        (m h w) attention weights over the whole image, (q m h w) for several queries. A map's sum is below 1 where
        other tokens (class token, padding) are attended to, too.

    Raises:
        ValueError: the place is outside the image, the block does not exist, or there is no token before the map.
        NotImplementedError: the backbone has no attention.
    """
    attention, size = looked_at(
        backbone, image, lambda prepared: backbone.attention(prepared, block), side=side, transform=transform
    )
    if query is None:
        return prefix_map(attention)[0].cpu().numpy()
    points = np.asarray(query, dtype=float)
    if points.ndim not in (1, 2) or points.shape[-1] != 2:
        raise ValueError(f"query must be a point [x, y] in pixels or a list of points, got {query!r}")
    maps = [map_of(attention, cell_of((x, y), size, attention.grid))[0] for x, y in points.reshape(-1, 2)]
    return torch.stack(maps).reshape(*points.shape[:-1], *maps[0].shape).cpu().numpy()


def map_of(attention: Attention, cell: tuple[int, int]) -> Tensor:
    """What a token of the map attends to: (b m h w), 0 where it sees nothing.

    Args:
        cell: row and column of the token.
    """
    h, w = attention.grid
    window, place = (attention.queries == cell[0] * w + cell[1]).nonzero()[0].tolist()
    weights, keys = attention.weights[:, window, :, place], attention.keys[window]  # (b m k), (k)
    on_map = keys >= 0
    empty = weights.new_zeros(*weights.shape[:2], h * w)
    return torch.unflatten(empty.index_add(2, keys[on_map], weights[..., on_map]), 2, (h, w))


def prefix_map(attention: Attention, token: int = 0) -> Tensor:
    """What a token before the map attends to: (b m h w)."""
    if attention.prefix is None:
        raise ValueError("this block has no token before the map (class or global token); give a query [x, y]")
    h, w = attention.grid
    return torch.unflatten(attention.prefix[:, :, token, -h * w :], 2, (h, w))


def heaviest(weights: np.ndarray, mass: float = MASS) -> np.ndarray:
    """The smallest part of a map that holds a share of its mass: bool, of the same shape (..., h, w).

    >>> heaviest(np.array([[0.1, 0.4], [0.3, 0.2]]), 0.6)
    array([[False,  True],
           [ True, False]])
    """
    flat = weights.reshape(*weights.shape[:-2], -1)
    order = np.argsort(-flat, axis=-1, kind="stable")
    sorted_ = np.take_along_axis(flat, order, -1)
    before = np.cumsum(sorted_, -1) - sorted_
    inside = before < mass * flat.sum(-1, keepdims=True) * (1 - 1e-6)
    mask: np.ndarray = np.zeros_like(inside)
    np.put_along_axis(mask, order, inside, -1)
    return np.reshape(mask, weights.shape)


def entropies(maps: np.ndarray) -> np.ndarray:
    """(..., h, w) -> (...): entropy in nats of each map as a distribution over its places; ln(h w) is the most.

    >>> entropies(np.array([[[1.0, 0.0]], [[0.2, 0.2]]])).round(3)
    array([-0.   ,  0.693])
    """
    flat = maps.reshape(*maps.shape[:-2], -1).astype(np.float64)
    shares = flat / np.maximum(flat.sum(-1, keepdims=True), 1e-30)
    found: np.ndarray = -(shares * np.log(np.maximum(shares, 1e-30))).sum(-1)
    return found


def sharpest(maps: np.ndarray, n: int | None) -> list[int]:
    """The n heads of lowest entropy in maps (m h w), sharpest first; all for None."""
    order: list[int] = np.argsort(entropies(maps), kind="stable").tolist()
    return order[:n]
