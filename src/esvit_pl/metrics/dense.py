"""Measures of dense tasks: intersection over union of classes, labels of regions, correct keypoints."""

# b images | H, W rows and columns of a mask | h, w the same of a region map | n = h * w regions | m regions of a bank
# q queries | c classes | d channels | p keypoints

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.metrics.knn import QUERIES_AT_ONCE, check_temperature, nearest

VOID = 255
"""In a mask: a pixel that belongs to no class, and counts nowhere."""


class IoU(NamedTuple):
    """Intersection over union."""

    mean: float
    """Over the classes that occur."""
    classes: Tensor
    """(c,) float64; nan for a class that occurs neither in the masks nor in the predictions."""
    pixels: float
    """Share of the pixels that are right."""


def confusion(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """(c c) long: how many pixels of the class of the row are taken for the class of the column; void is left out.

    Sums, so that batches and ranks can be added up.

    >>> confusion(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, VOID]]), 2).tolist()
    [[1, 1], [0, 0]]

    Args:
        predicted: (b H W) classes.
        mask: (b H W) classes from 0 on, or `VOID`.
        num_classes: c.

    Raises:
        ValueError: the shapes differ; a class of the mask is c or more, and not void.
    """
    if predicted.shape != mask.shape:
        raise ValueError(f"a prediction needs the shape of its mask, {tuple(mask.shape)}, got {tuple(predicted.shape)}")
    mask = mask.long()
    known = mask != VOID
    check_classes(mask[known], num_classes)
    pairs = mask[known] * num_classes + predicted[known].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def iou(counts: Tensor) -> IoU:
    """Intersection over union of every class, from the `confusion` of all images together.

    A class that occurs neither in the masks nor in the predictions is left out of the mean, as VOC's own evaluation and
    torchmetrics' ``MulticlassJaccardIndex(average="macro")`` do; one that is predicted and never true counts with 0.

    >>> found = iou(torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    >>> round(found.mean, 4), found.classes.tolist()
    (0.7083, [0.75, 0.6666666666666666, nan])

    Raises:
        ValueError: no pixel was counted.
    """
    counts = counts.double()
    right, total = counts.diagonal(), counts.sum()
    if total == 0:
        raise ValueError("an intersection over union needs one pixel or more whose class is known, got none")
    classes = right / (counts.sum(0) + counts.sum(1) - right)
    return IoU(float(classes.nanmean()), classes, float(right.sum() / total))


def region_labels(mask: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """(b n c) float32: the share of each class among the pixels of every region whose class is known.

    A pixel belongs to the region that holds its middle. The shares of a region that is void all over are 0.

    >>> region_labels(torch.tensor([[[0, 0, 1, VOID]]]), (1, 2), 2).tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]

    Args:
        mask: (b H W) classes from 0 on, or `VOID`.
        grid: (h, w) of the region map that lies over the mask.
        num_classes: c.
    """
    mask = mask.long()
    (h, w), (height, width) = grid, mask.shape[-2:]
    row = (2 * torch.arange(height, device=mask.device) + 1) * h // (2 * height)
    column = (2 * torch.arange(width, device=mask.device) + 1) * w // (2 * width)
    image = torch.arange(len(mask), device=mask.device)[:, None, None]
    cell = image * (h * w) + row[:, None] * w + column  # (b H W)
    known = mask != VOID
    check_classes(mask[known], num_classes)
    size = len(mask) * h * w * num_classes
    counts = torch.bincount(cell[known] * num_classes + mask[known], minlength=size).view(len(mask), h * w, -1).float()
    return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def majority(labels: Tensor) -> Tensor:
    """(... c) shares of classes -> the same with 1 for the most frequent class (of equal ones the lowest) and 0 for the
    others; regions that are void all over keep their zeros."""
    winner = F.one_hot(labels.argmax(-1), labels.shape[-1]).to(labels)
    return winner * (labels.sum(-1, keepdim=True) > 0)


def neighbour_votes(
    bank: Tensor, labels: Tensor, query: Tensor, *, k: int, temperature: float, chunk: int | None = None
) -> Tensor:
    """(q c): mean of the labels of the k nearest regions of the bank, weighted by softmax(cosine / temperature).

    With one label for each region it is weighted k-NN (`metrics.knn`); with shares of classes it is the cross-attention
    of Balazevic et al. (arXiv 2306.01667) over the nearest k.

    >>> bank, labels = torch.eye(2), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    >>> neighbour_votes(bank, labels, torch.tensor([[0.0, 2.0]]), k=1, temperature=0.1)
    tensor([[0.2500, 0.7500]])

    Args:
        bank: (m d) features of any length.
        labels: (m c).
        query: (q d).
        k: at most m.
        temperature: of the softmax.
        chunk: queries at once; changes memory, never the result.

    Raises:
        ValueError: k below 1 or above m; a temperature of 0 or less; lengths or widths that do not fit.
    """
    check_temperature(temperature)
    if bank.ndim != 2 or query.ndim != 2 or bank.shape[1] != query.shape[1] or len(labels) != len(bank):
        shapes = ", ".join(str(tuple(x.shape)) for x in (bank, labels, query))
        raise ValueError(f"bank, labels and query must be (m d), (m c) and (q d), got {shapes}")
    if not 1 <= k <= len(bank):
        raise ValueError(f"k={k} neighbours, and the bank holds {len(bank)} regions; choose k from 1 to {len(bank)}")
    votes = []
    for part in query.split(chunk or QUERIES_AT_ONCE):
        cosine, places = nearest(bank, part, k)
        with torch.autocast(part.device.type, enabled=False):
            weights = (cosine / temperature).softmax(1)  # (q k)
            votes.append((weights[:, None] @ labels[places].to(weights))[:, 0])
    return torch.cat(votes)


def upsampled(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(b c h w) scores of regions -> (b c H W) of pixels, bilinear between the middles of the regions."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def at_places(regions: Tensor, grid: tuple[int, int], places: Tensor) -> Tensor:
    """(... d): features at places of one map, bilinear between the middles of regions; beyond the outer ones theirs.

    >>> at_places(torch.eye(2), (1, 2), torch.tensor([[0.5, 0.5], [0.9, 0.0]]))
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]])

    Args:
        regions: (n d).
        grid: (h, w).
        places: (... 2) x and y as shares of the image's width and height.
    """
    image = regions.T.unflatten(1, grid)[None]  # (1 d h w)
    where = (2 * places.to(image) - 1).reshape(1, 1, -1, 2)
    found = F.grid_sample(image, where, mode="bilinear", padding_mode="border", align_corners=False)  # (1 d 1 p)
    return found[0, :, 0].T.reshape(*places.shape[:-1], -1)


def match_places(
    source: Tensor,
    source_grid: tuple[int, int],
    target: Tensor,
    target_grid: tuple[int, int],
    places: Tensor,
    *,
    steps: int = 8,
) -> Tensor:
    """(p 2): where the target looks most like the source at each of the places, by cosine.

    First the most similar region, then the most similar of the places up to one region around its middle, with features
    interpolated between regions (as in Tang et al., arXiv 2306.03881, who interpolate the whole map). The similarities
    themselves are not interpolated: their largest one would always lie in the middle of a region.

    Args:
        source, target: (n d) regions of the two images.
        source_grid, target_grid: (h, w) of their maps.
        places: (p 2) x and y in the source as shares of its width and height.
        steps: places that are tried along one region's side; 0 stays in the middle of the region.
    """
    asked = F.normalize(at_places(source, source_grid, places), dim=-1)  # (p d)
    best = (asked @ F.normalize(target, dim=-1).T).argmax(-1)
    h, w = target_grid
    middle = torch.stack([(best % w + 0.5) / w, (best // w + 0.5) / h], dim=-1)  # (p 2)
    if not steps:
        return middle
    offsets = torch.arange(-steps, steps + 1, device=middle.device) / steps
    around = torch.cartesian_prod(offsets, offsets)  # (s 2)
    around = around[around.norm(dim=-1).argsort(stable=True)]  # of equal places the one nearest to the middle wins
    tried = (middle[:, None] + around / around.new_tensor([w, h])).clamp(0, 1)  # (p s 2)
    similar = torch.stack(
        [
            F.normalize(at_places(target, target_grid, spots), dim=-1) @ one
            for spots, one in zip(tried, asked, strict=True)
        ]
    )
    return tried.gather(1, similar.argmax(-1)[:, None, None].expand(-1, 1, 2))[:, 0]


def correct_keypoints(found: Tensor, truth: Tensor, box: Tensor, alpha: float = 0.1) -> Tensor:
    """(p,) bool: whether a keypoint was found no further than alpha * max(width, height) of the object's box from where
    it is: the rule of SPair-71k (Min et al., arXiv 1908.10543).

    >>> box = torch.tensor([10.0, 10.0, 60.0, 30.0])  # 50 wide
    >>> correct_keypoints(torch.tensor([[20.0, 20.0], [20.0, 20.0]]), torch.tensor([[23.0, 24.0], [23.0, 24.1]]), box)
    tensor([ True, False])

    Args:
        found, truth: (p 2) x and y in pixels of the target.
        box: (4,) left, top, right, bottom in the same pixels.
        alpha: a share of the box.
    """
    reach = alpha * max(float(box[2] - box[0]), float(box[3] - box[1]))
    distance: Tensor = (found.double() - truth.double()).norm(dim=-1)
    return distance <= reach


def check_classes(classes: Tensor, num_classes: int) -> None:
    """Refuse a class that is `num_classes` or more."""
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise ValueError(
            f"a mask must hold classes from 0 to {num_classes - 1}, or {VOID} for void, got {int(classes.min())} to "
            f"{int(classes.max())}"
        )
