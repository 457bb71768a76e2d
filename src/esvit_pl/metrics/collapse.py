"""Measures of a network's health, and what counts as healthy.

A collapsed network gives every image the same answer. Its loss may look fine, so these measures look at the features
and the teacher's distributions themselves. All are computed in float32 at least and carry no gradient. None waits for
the GPU but `effective_rank`, because torch's singular values do.
"""

# n rows (images) | d, c channels | b images | r regions of an image | k prototypes

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.precision import wide


class Healthy(NamedTuple):
    """The range of a healthy measure, ends included; None is no bound."""

    low: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the value is inside; nan never is, unless there is no bound at all."""
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        return low <= value <= high or self == Healthy()


HEALTHY: dict[str, Healthy] = {
    "feature_spread": Healthy(low=0.05),
    "effective_rank": Healthy(low=3.0),
    "region_diversity": Healthy(low=0.02),
    "teacher_entropy_share": Healthy(high=0.98),
    "kl": Healthy(low=0.01),
    "matched_share": Healthy(low=0.1),
    "center_norm": Healthy(),
}
"""Default ranges; docs/recipes.md, "Health", has the runs behind them.

A sharp teacher is not a bad sign, so the entropy has no lower bound: if all images get one prototype, the divergence
shows it. The norm of the centre says something only when it is compared with that of earlier steps.
"""

ADVICE: dict[str, str] = {
    "feature_spread": (
        "all images get almost the same feature. Usual causes: the teacher shares its weights with the student or "
        "follows it too fast (raise the momentum), no centre, a learning rate too high"
    ),
    "effective_rank": (
        "the features differ in one or two directions only. Usual causes: the teacher follows the student too fast "
        "(raise the momentum), no centre, a learning rate too high"
    ),
    "region_diversity": (
        "all regions of an image get almost the same feature. Look at the region loss, which is there to prevent it "
        "(its weight, batch norm in its head), and at the number of regions of a crop"
    ),
    "teacher_entropy_share": (
        "the teacher's distributions are uniform, and there is nothing to learn from them. Usual causes: a teacher "
        "temperature too high (0.04 to 0.07), a centre that moves too fast, a learning rate too high"
    ),
    "kl": (
        "the student predicts the teacher without seeing what it saw. Usual causes: the teacher is the student, both "
        "give one answer to all images, or student and teacher get the same crop"
    ),
    "matched_share": (
        "regions of all kinds are matched to the same few teacher regions. Usual cause: the backbone's regions have "
        "become equal; see region_diversity"
    ),
}
"""What a measure outside its range means and what to look at."""


def measure_of(name: str) -> str | None:
    """The measure that a diagnostic's name ends in: "region_kl" -> "kl"; None if it ends in no measure."""
    return next((measure for measure in HEALTHY if name == measure or name.endswith(f"_{measure}")), None)


def symptom(name: str, value: float, healthy: Healthy) -> str:
    """One line about a value outside its healthy range: what, why, what to do."""
    if math.isnan(value):
        return f"{name} is not a number: features or loss are not finite; lower the learning rate"
    below = healthy.low is not None and value < healthy.low
    side, bound = ("below", healthy.low) if below else ("above", healthy.high)
    measure = measure_of(name) or name
    default = HEALTHY.get(measure, Healthy())
    explained = (default.low if below else default.high) is not None
    return f"{name} = {value:.3g} {side} {bound:g}" + (f": {ADVICE[measure]}" if explained else "")


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
    rounding = torch.finfo(x.dtype).eps * max(x.shape) * torch.linalg.vector_norm(x)
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
