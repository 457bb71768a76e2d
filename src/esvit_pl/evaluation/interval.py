"""How exactly an accuracy is known from so many images."""

from __future__ import annotations

import math

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
