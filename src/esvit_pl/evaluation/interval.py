"""How exactly an accuracy is known from so many images."""

# n images

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z = 1.959963984540054
"""Of the normal distribution, 95 % lies within so many standard deviations of its mean."""
FEW = 100
"""Below so many query images a table of results says that they are few."""


def wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, right for few images and near 0 and 1, too (Wilson 1927; Brown et al. 2001).

    With n images, p right: centre (p + z^2 / 2n) / (1 + z^2 / n), half width z / (1 + z^2 / n) times the square root of
    p (1 - p) / n + z^2 / 4n^2, z = 1.96.

    >>> low, high = wilson(1.0, 14)  # all of 14 are right
    >>> round(low, 3), high
    (0.785, 1.0)

    Args:
        share: fraction of right answers, 0-1.
        number: of images, 1 or more.
    """
    if number < 1 or not 0 <= share <= 1:
        raise ValueError(f"an interval needs a share in 0-1 and 1 image or more, got {share} and {number}")
    scale = 1 + Z**2 / number
    centre = (share + Z**2 / (2 * number)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / number + Z**2 / (4 * number**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def resampled(
    values: Any, groups: Sequence[Any] | None = None, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a mean over images, by a bootstrap (Efron 1979): as many images are drawn anew, with
    repeats, and the mean is taken, `draws` times; the ends are the 2.5 and 97.5 % quantiles.

    For an accuracy the values are 1 (right) and 0. For a difference between two encoders on the same images they are
    1 (only the first is right), -1 (only the second) and 0: a paired bootstrap, which leaves out what is hard for both.

    >>> low, high = resampled([1] * 80 + [0] * 20)
    >>> round(low, 2), round(high, 2)
    (0.72, 0.88)

    Args:
        values: (n,) numbers.
        groups: (n,) of anything: images of one group are drawn together, since they are alike (patches of one
            photograph, frames of one film). None: each image alone.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a bootstrap needs a number for each of 1 image or more, got shape {values.shape}")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"a bootstrap needs a group for each image, got {len(groups)} for {len(values)}")
    _, place = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    sums, sizes = (np.bincount(place, weights) for weights in (values, None))
    # Groups with equal sums and sizes are one kind: how often each kind is drawn is multinomial, so that a million
    # images cost no more than a few.
    kinds, counts = np.unique(np.stack([sums, sizes], 1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(sums), counts / len(sums), size=draws)  # (draws kinds)
    low, high = np.quantile((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]), (0.025, 0.975))
    return float(low), float(high)
