"""Sums from which measures of features follow, so that the features of many images need not be kept.

All are computed in float64, so that they do not depend on how the images were cut into batches, but for its rounding.
"""

# n rows (images) | d, c channels | q views of an image

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esvit_pl.metrics.collapse import discriminant_rank


class Moments(NamedTuple):
    """Number, mean and scatter of rows.

    >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> merged([moments(x[:1]), moments(x[1:])]).scatter.tolist()
    [[18.0, 0.0], [0.0, 2.0]]
    """

    number: Tensor
    """Scalar: n."""
    mean: Tensor
    """(d,)"""
    scatter: Tensor
    """(d d): sum of (row - mean)(row - mean)^T."""


@torch.no_grad()
def moments(rows: Tensor) -> Moments:
    """The sums of one row or more, (n d)."""
    x = rows.double()
    mean = x.mean(0)
    return Moments(x.new_tensor(len(x)), mean, (x - mean).T @ (x - mean))


@torch.no_grad()
def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all rows from those of parts (Chan et al., "Updating formulae and a pairwise algorithm", 1979)."""
    counts, means = torch.stack([part.number for part in parts]), torch.stack([part.mean for part in parts])
    count = counts.sum()
    mean = (counts[:, None] * means).sum(0) / count
    apart = means - mean
    return Moments(count, mean, sum((part.scatter for part in parts), (counts[:, None] * apart).T @ apart))


@torch.no_grad()
def effective_rank_of(rows: Moments, dtype: torch.dtype = torch.float32) -> Tensor:
    """`effective_rank` of the rows.

    Args:
        dtype: in which the features were computed; directions below its rounding do not count.
    """
    if not _finite(rows):
        return rows.mean.new_full((), math.nan)
    values = torch.linalg.eigvalsh(rows.scatter).clamp_min(0.0).sqrt()
    size = (rows.scatter.trace() + rows.number * rows.mean.square().sum()).sqrt()
    values = torch.where(values > 10 * torch.finfo(dtype).eps * size, values, 0.0)
    total = values.sum()
    share = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(total > 0, torch.special.entr(share).sum().exp(), 0.0)


@torch.no_grad()
def rankme_of(rows: Moments, epsilon: float = 1e-7) -> Tensor:
    """`rankme` of the rows."""
    if not _finite(rows):
        return rows.mean.new_full((), math.nan)
    squares = torch.linalg.eigvalsh(rows.scatter + rows.number * rows.mean.outer(rows.mean))
    squares = squares[-min(len(squares), int(rows.number)) :]  # so many singular values has a matrix of n rows
    rounding = torch.finfo(squares.dtype).eps * len(rows.mean) * squares[-1]
    values = torch.where(squares > rounding, squares, 0.0).sqrt()
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + epsilon
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank


@torch.no_grad()
def diversity_of(statistics: Moments) -> Tensor:
    """`region_diversity` from the moments of the `region_statistics` (n c + 1)."""
    means, within = statistics.mean[:-1], statistics.mean[-1]
    between = statistics.scatter.diagonal()[:-1].sum() / statistics.number
    total = within + between
    rounding = (10 * torch.finfo(torch.float32).eps) ** 2 * (total + means.square().sum())
    return torch.where(total <= rounding, 0.0, within / total)


@torch.no_grad()
def lidar_of(views: Moments, means: Moments, delta: float = 1e-4, epsilon: float = 1e-7) -> Tensor:
    """`lidar` from the moments of all views and of the images' means over their views, equally many for each image.

    What all views scatter is what views scatter about their image's mean, and q times what the means scatter.
    """
    if not (_finite(views) and _finite(means)):
        return views.mean.new_full((), math.nan)
    q = views.number / means.number
    within = (views.scatter - q * means.scatter) / views.number
    return discriminant_rank(means.scatter / means.number, within, delta, epsilon)


def _finite(rows: Moments) -> bool:
    return bool(rows.scatter.isfinite().all() and rows.mean.isfinite().all())
