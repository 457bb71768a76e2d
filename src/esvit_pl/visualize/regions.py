"""The regions of other images that are most like a place of one image."""

# b images | n regions | d channels

from __future__ import annotations

from collections.abc import Iterable
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
    """Find the region of each image that is most like the query's, and return the k most similar of these, best first.

    Args:
        image: where the query lies.
        query: x, y in pixels of the image.
        batches: prepared images, as ``ImageDataModule.bank_dataloader()`` gives them.
        k: how many.
        side: pixels of the image's shorter side for the backbone.
    """
    features, size = looked_at(backbone, image, backbone, side=side)
    row, column = cell_of(query, size, features.grid)
    asked = F.normalize(features.regions[0, row * features.grid[1] + column].float(), dim=0)  # (d)
    cosines: list[Tensor] = []
    places: list[Tensor] = []
    grid = features.grid
    with still(backbone):
        for batch in batches:
            images, _ = unpack_batch(batch)
            found = backbone(images.to(asked.device))
            best = (F.normalize(found.regions.float(), dim=-1) @ asked).max(1)  # (b n d) (d) -> (b)
            cosines.append(best.values.cpu())
            places.append(best.indices.cpu())
            grid = found.grid
    if not cosines:
        return []
    everywhere, place = torch.cat(cosines), torch.cat(places)
    order = everywhere.argsort(descending=True, stable=True)[:k].tolist()
    return [
        NearRegion(number, divmod(int(place[number]), grid[1]), grid, float(everywhere[number])) for number in order
    ]
