"""Measures of a network's health; what counts as healthy is in `metrics.health`.

A collapsed network gives every image the same answer. Its loss may look fine, so these measures look at the features
and the teacher's distributions themselves. All are computed in float32 at least and carry no gradient. None waits for
the GPU but `effective_rank`, because torch's singular values do.
"""

# n rows (images) | d, c channels | b images | r regions of an image | k prototypes

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.metrics.health import ADVICE as ADVICE
from esvit_pl.metrics.health import HEALTHY as HEALTHY
from esvit_pl.metrics.health import Healthy as Healthy
from esvit_pl.metrics.health import measure_of as measure_of
from esvit_pl.metrics.health import symptom as symptom
from esvit_pl.precision import wide


@torch.no_grad()
def feature_spread(features: Tensor) -> Tensor:
    """Mean cosine distance between two different rows: 0 where all point the same way, 1 where they are uniform on the
    sphere, up to n / (n - 1) for n rows that cancel.

    Equal to the sum over channels of the unbiased variance of the l2-normed features, so that it does not depend on n.

    Args:
        features: (n d). A row of zeros counts as the zero vector.

    Returns:
        Scalar; 0 for one row or none.
    """
    x = wide(_checked(features, 2, "(n, d)"))
    if len(x) < 2:
        return x.new_zeros(())
    return F.normalize(x, dim=1).var(0, correction=1).sum()


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of the centred features' singular values, scaled to a sum of 1: how many dimensions are used.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. Between 1 (all rows on
    one line) and min(n - 1, d) (equally long in all directions); blind to the features' scale, so it can be high where
    `feature_spread` is near 0.

    Args:
        features: (n d), not scaled to unit length.

    Returns:
        Scalar; 0 where all rows are equal up to rounding, and for one row or none; nan where a feature is not finite.
    """
    x = wide(_checked(features, 2, "(n, d)"))
    if len(x) < 2:
        return x.new_zeros(())
    finite = x.isfinite().all()
    x = torch.where(finite, x, 0.0)  # LAPACK refuses what is not finite
    values = torch.linalg.svdvals(x - x.mean(0))
    rounding = 10 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x)  # of all rows together, however many
    values = torch.where(values > rounding, values, 0.0)
    total = values.sum()
    share = values / total.clamp_min(torch.finfo(x.dtype).tiny)
    rank = torch.where(total > 0, torch.special.entr(share).sum().exp(), 0.0)
    return torch.where(finite, rank, math.nan)


@torch.no_grad()
def rankme(features: Tensor, epsilon: float = 1e-7) -> Tensor:
    """exp of the entropy of p = singular values / their sum + epsilon, of features as they are.

    Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised representations by their
    rank", ICML 2023. Unlike `effective_rank` it does not centre the features, so a large mean counts as one direction.

    Args:
        features: (n d), not scaled to unit length. The paper takes 25,600 images; few images bound it.

    Returns:
        Scalar from 1 to about min(n, d); 0 without an image; nan where a feature is not finite.
    """
    x = wide(_checked(features, 2, "(n, d)"))
    if len(x) == 0:
        return x.new_zeros(())
    if not x.isfinite().all():  # LAPACK refuses it
        return x.new_full((), math.nan)
    values = torch.linalg.svdvals(x)
    share = values / values.sum().clamp_min(torch.finfo(x.dtype).tiny) + epsilon
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank


@torch.no_grad()
def lidar(clones: Tensor, delta: float = 1e-4, epsilon: float = 1e-7) -> Tensor:
    """How many directions tell images apart more than views of one image differ: exp of the entropy of eigenvalues.

    Thilak et al., "LiDAR: sensing linear probing performance in joint embedding SSL architectures", ICLR 2024. Between:
    covariance of the images' means. Within: covariance of views about their image's mean, plus delta on the diagonal.
    The eigenvalues of within^-1/2 between within^-1/2, scaled to a sum of 1, plus epsilon.

    >>> round(lidar(torch.eye(3, dtype=torch.float64)[:, None].expand(3, 4, 3)).item(), 3)  # a plane; views are equal
    2.0

    Args:
        clones: (b q d) features of q views of each image.
        delta: keeps directions in which no view differs from counting without end.

    Returns:
        Scalar, float64; 0 where all images have the same mean; nan where a feature is not finite.
    """
    x = _checked(clones, 3, "(images, views, channels)").double()
    finite = x.isfinite().all()
    x = torch.where(finite, x, 0.0)  # LAPACK refuses what is not finite
    means = x.mean(1, keepdim=True)
    centred, deviations = (means - means.mean(0)).flatten(0, 1), (x - means).flatten(0, 1)
    between, within = (rows.T @ rows / max(len(rows), 1) for rows in (centred, deviations))
    return torch.where(finite, discriminant_rank(between, within, delta, epsilon), math.nan)


def discriminant_rank(between: Tensor, within: Tensor, delta: float, epsilon: float) -> Tensor:
    """`lidar` from its two covariances (d d), float64."""
    values, axes = torch.linalg.eigh(within + delta * torch.eye(len(within), dtype=within.dtype, device=within.device))
    whitening = axes / values.clamp_min(delta).sqrt() @ axes.T  # no variance is negative, but for rounding
    found = torch.linalg.eigvalsh(whitening @ between @ whitening).clamp_min(0.0)
    total = found.sum()
    share = found / total.clamp_min(torch.finfo(found.dtype).tiny) + epsilon
    return torch.where(total > 0, torch.special.entr(share).sum().exp(), 0.0)


@torch.no_grad()
def region_diversity(regions: Tensor) -> Tensor:
    """Share of the regions' variance that lies within images: 0 where all regions of an image are equal, 1 where the
    images' means are.

    Args:
        regions: (b r c). Several views of an image count as several images.

    Returns:
        Scalar in 0-1; 0 where all regions of all images are equal up to rounding; 1 for one image of unequal regions.
    """
    return diversity(region_statistics(regions))


@torch.no_grad()
def region_statistics(regions: Tensor) -> Tensor:
    """(b r c) -> (b c + 1): of each image the mean of its regions, then their variance. All that `diversity` needs,
    and little enough to be gathered from many processes."""
    x = wide(_checked(regions, 3, "(b, r, c)"))
    return torch.cat([x.mean(1), x.var(1, correction=0).sum(-1, keepdim=True)], dim=1)


@torch.no_grad()
def diversity(statistics: Tensor) -> Tensor:
    """`region_diversity` from the `region_statistics` (b c + 1) of all images."""
    means, within = statistics[:, :-1], statistics[:, -1].mean()
    between = means.var(0, correction=0).sum()
    total = within + between
    rounding = (10 * torch.finfo(means.dtype).eps) ** 2 * (within + means.square().sum(-1).mean())
    return torch.where(total <= rounding, 0.0, within / total)  # a comparison with nan is false, and nan stays


@torch.no_grad()
def entropy_share(probabilities: Tensor) -> Tensor:
    """Mean entropy of distributions as a share of `largest_entropy`: 0 where each has one choice, 1 where all are
    uniform.

    Args:
        probabilities: (... k), each row of sum 1.

    Returns:
        Scalar in 0-1.
    """
    p = wide(probabilities)
    entropy: Tensor = torch.special.entr(p).sum(-1).mean()
    return entropy / largest_entropy(p.shape[-1])


def largest_entropy(k: int) -> float:
    """ln k, in nats; ln 2 for k = 1, so that it can be divided by."""
    return math.log(max(k, 2))


def _checked(x: Tensor, ndim: int, shape: str) -> Tensor:
    if x.ndim != ndim:
        raise ValueError(f"features must be {shape}, got {tuple(x.shape)}; average or flatten the other dimensions")
    return x
