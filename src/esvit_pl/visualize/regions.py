"""The regions of other images that are most like a place of one image."""

# b images | n regions | d channels

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.backbones import Backbone
from esvit_pl.evaluation.features import unpack_batch
from esvit_pl.visualize.looking import Picture, Point, cell_of, looked_at, still


class NearRegion(NamedTuple):
    """A region of an image of a loader.

    Attributes:
        image: number of the image in the loader.
        cell: row and column in its map.
        grid: (h, w) of the map.
        cosine: how similar it is.
    """

    image: int
    cell: tuple[int, int]
    grid: tuple[int, int]
    cosine: float


def nearest_regions(
    backbone: Backbone, image: Picture, query: Point, batches: Iterable[Any], *, k: int = 6, side: int | None = None
) -> list[NearRegion]:
    """The same as `like`, for the region at a place of an image and the images of a loader.

    Args:
        image: where the query lies.
        query: x, y in pixels of the image.
        batches: prepared images, as ``ImageDataModule.bank_dataloader()`` gives them.
        k: how many.
        side: pixels of the image's shorter side for the backbone.
    """
    asked = region_at(backbone, image, query, side=side)

    def maps() -> Iterator[tuple[Tensor, tuple[int, int]]]:
        for batch in batches:
            images, _ = unpack_batch(batch)
            found = backbone(images.to(asked.device))
            yield found.regions, found.grid

    with still(backbone):
        return like(asked, maps(), k=k)


def region_at(backbone: Backbone, image: Picture, query: Point, *, side: int | None = None) -> Tensor:
    """The region (d) at a place of the image, which is given in pixels."""
    features, size = looked_at(backbone, image, backbone, side=side)
    row, column = cell_of(query, size, features.grid)
    region: Tensor = features.regions[0, row * features.grid[1] + column]
    return region


def like(region: Tensor, maps: Iterable[tuple[Tensor, tuple[int, int]]], *, k: int) -> list[NearRegion]:
    """Find the region of each image that is most like this one, and return the k most similar of these, best first.

    >>> [near] = like(torch.tensor([0.0, 2.0]), [(torch.eye(2)[None], (1, 2))], k=1)
    >>> near.cell, near.cosine
    ((0, 1), 1.0)

    Args:
        region: (d)
        maps: batches of region maps (b n d) with their grids (h, w).
        k: how many.
    """
    asked = F.normalize(region.float(), dim=0)
    cosines: list[Tensor] = []
    places: list[Tensor] = []
    grid = (0, 0)
    for regions, grid in maps:  # noqa: B007 - the last one is that of all
        best = (F.normalize(regions.float(), dim=-1) @ asked).max(1)  # (b n d) (d) -> (b)
        cosines.append(best.values.cpu())
        places.append(best.indices.cpu())
    if not cosines:
        return []
    everywhere, place = torch.cat(cosines), torch.cat(places)
    order = everywhere.argsort(descending=True, stable=True)[:k].tolist()
    return [
        NearRegion(number, divmod(int(place[number]), grid[1]), grid, float(everywhere[number])) for number in order
    ]
