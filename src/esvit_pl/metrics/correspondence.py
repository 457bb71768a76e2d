"""How often a region finds its own place in another view, where the views' boxes in the image are known."""

# b pairs of views | n, m regions of the first and the second view | h, w rows and columns of a map | d channels

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MEASURES = ("exact", "near", "distance")
"""Share of regions matched to the right place; to it or one of the 8 around; mean distance in pixels of the view."""


class RegionMap(NamedTuple):
    """Regions of one view of each pair, and where the view lies in the image."""

    regions: Tensor
    """(b n d) features of a backbone, row by row."""
    grid: tuple[int, int]
    """(h, w) of their map."""
    boxes: Tensor
    """(b 4) x, y, width, height of the view in the image, 0-1."""
    flipped: Tensor
    """(b) bool: whether the view is mirrored."""


class Correspondences(NamedTuple):
    """Where the regions of the first view belong in the second, and where they were found.

    Attributes:
        place: (b n 2) row and column in the second view's map, as fractions of cells: 0.5 is the middle of the first.
        inside: (b n) bool: whether the place lies in the second view at all.
        match: (b n) number of the most similar region of the second view.
        cosine: (b n) how similar it is.
    """

    place: Tensor
    inside: Tensor
    match: Tensor
    cosine: Tensor


def correspond(first: RegionMap, second: RegionMap) -> Correspondences:
    """For each region of the first view its right place in the second view, and the most similar region there.

    >>> whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> regions = torch.eye(4)[None]
    >>> a = RegionMap(regions, (2, 2), whole, torch.tensor([False]))
    >>> mirrored = RegionMap(regions[:, [1, 0, 3, 2]], (2, 2), whole, torch.tensor([True]))
    >>> correspond(a, mirrored).match.tolist()
    [[1, 0, 3, 2]]
    """
    similar = F.normalize(first.regions, dim=-1) @ F.normalize(second.regions, dim=-1).mT  # (b n m)
    cosine, match = similar.max(-1)
    inside_view = in_view(in_image(centres(first.grid, first.boxes), first), second)  # (b n 2) rows, columns in 0-1
    inside = ((inside_view >= 0) & (inside_view < 1)).all(-1)
    return Correspondences(inside_view * inside_view.new_tensor(second.grid), inside, match, cosine)


def centres(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(h*w 2): row and column of the middle of each cell, 0-1 of the view."""
    h, w = grid
    rows, columns = (
        (torch.arange(length, device=like.device, dtype=torch.float64) + 0.5) / length for length in (h, w)
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)


def in_image(places: Tensor, view: RegionMap) -> Tensor:
    """(n 2) row and column in a view -> (b n 2) in the image, all 0-1."""
    x, y, width, height = view.boxes.double()[..., None].unbind(1)  # (b 1)
    column = torch.where(view.flipped[:, None], 1 - places[:, 1], places[:, 1])
    return torch.stack([y + height * places[:, 0], x + width * column], dim=-1)


def in_view(places: Tensor, view: RegionMap) -> Tensor:
    """(b n 2) row and column in the image -> in a view, where they may lie outside 0-1."""
    x, y, width, height = view.boxes.double()[..., None].unbind(1)
    column = (places[..., 1] - x) / width
    return torch.stack([(places[..., 0] - y) / height, torch.where(view.flipped[:, None], 1 - column, column)], dim=-1)


def correspondence_sums(found: Correspondences, grid: tuple[int, int], side: float) -> Tensor:
    """(7,) float64: number of regions whose place lies in the second view; the sums over them of the three `MEASURES`,
    and of what a match drawn at random would give.

    Args:
        grid: of the second view.
        side: of the second view in pixels.
    """
    h, w = grid
    place = found.place[found.inside]  # (k 2)
    cell = place.floor()
    matched = torch.stack([found.match // w, found.match % w], dim=-1)[found.inside]
    every = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).flatten(0, 1).to(place)
    pixels = place.new_tensor([side / h, side / w])

    def measures(there: Tensor) -> Tensor:
        """(k l 2) cells -> (3,) sums over k of means over l."""
        steps = (there - cell[:, None]).abs().amax(-1)  # (k l)
        distance = ((there + 0.5 - place[:, None]) * pixels).norm(dim=-1)
        return torch.stack([(steps == 0).double(), (steps <= 1).double(), distance]).mean(-1).sum(-1)

    if not len(place):
        return place.new_zeros(7)
    number = place.new_tensor([len(place)])
    return torch.cat([number, measures(matched[:, None].to(place)), measures(every.expand(len(place), -1, -1))])


def retrieved(first: RegionMap, second: RegionMap) -> Tensor:
    """(3,) float64: number of regions of the first views whose place lies in the second view; how many of them find,
    among the regions of all second views, one of the right image; and the right one.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> regions, boxes = torch.randn(3, 4, 8), torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4)
    >>> view = RegionMap(regions, (2, 2), boxes, torch.zeros(3, dtype=torch.bool))
    >>> retrieved(view, view).tolist()
    [12.0, 12.0, 12.0]
    """
    found = correspond(first, second)
    asked, others = (F.normalize(view.regions, dim=-1).flatten(0, 1) for view in (first, second))
    best = torch.cat([(part @ others.T).argmax(-1) for part in asked.split(4096)]).view(found.match.shape)  # (b n)
    h, w = second.grid
    image, cell = best // (h * w), best % (h * w)
    place = found.place.floor().long()
    right_image = (image == torch.arange(len(image), device=image.device)[:, None]) & found.inside
    right_place = right_image & (cell == place[..., 0] * w + place[..., 1])
    return torch.stack([found.inside.sum(), right_image.sum(), right_place.sum()]).double()
