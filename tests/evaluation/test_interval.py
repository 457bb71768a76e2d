"""Wilson's interval, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from esvit_pl.evaluation.interval import resampled, wilson


def test_twelve_of_fourteen():
    """p = 12/14, n = 14, z^2 = 3.8415: the centre is (0.857143 + 0.137195) / 1.274391 = 0.780246; the half width is
    1.96 / 1.274391 sqrt(0.122449 / 14 + 3.8415 / 784) = 1.537959 * 0.116824 = 0.179671."""
    assert wilson(12 / 14, 14) == pytest.approx((0.600575, 0.959916), abs=2e-5)


def test_none_and_all_are_right():
    """At p = 0 the interval is 0 to z^2 / (n + z^2); at p = 1 its mirror image."""
    assert wilson(0.0, 14) == pytest.approx((0.0, 3.841459 / 17.841459), abs=1e-6)
    assert wilson(1.0, 14) == pytest.approx((14 / 17.841459, 1.0), abs=1e-6)


def test_many_images_are_the_normal_distribution():
    low, high = wilson(0.5, 1_000_000)
    assert high - low == pytest.approx(2 * 1.959964 * (0.25 / 1_000_000) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(("share", "number"), [(0.5, 0), (1.1, 5), (-0.1, 5)])
def test_what_is_no_share(share, number):
    with pytest.raises(ValueError, match="an interval needs a share in 0-1 and 1 image or more"):
        wilson(share, number)


def test_a_bootstrap_of_an_accuracy_is_binomial():
    """80 of 100: the quantiles of Binomial(100, 0.8) are 72 and 87 or 88."""
    low, high = resampled([1] * 80 + [0] * 20)
    assert low == pytest.approx(0.72, abs=0.011)
    assert high == pytest.approx(0.875, abs=0.011)
    assert resampled([1] * 80 + [0] * 20) == (low, high)


def test_a_bootstrap_is_the_one_that_draws_images():
    """Against drawing images one by one, with groups of different sizes: the ratio of two sums."""
    values = np.array([1, 0, 1, 1, -1, 0, 0, 1, 1, 1], dtype=float)
    groups = ["a", "a", "b", "c", "c", "c", "d", "e", "e", "f"]
    names = sorted(set(groups))
    generator = np.random.default_rng(1)
    sums = np.array([values[[g == name for g in groups]].sum() for name in names])
    sizes = np.array([groups.count(name) for name in names])
    drawn = generator.integers(len(names), size=(40_000, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = resampled(values, groups, draws=40_000)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.03)


@pytest.mark.parametrize(
    ("values", "groups", "said"),
    [([], None, "1 image or more"), ([[1]], None, "1 image or more"), ([1, 0], ["a"], "got 1 for 2")],
)
def test_what_a_bootstrap_refuses(values, groups, said):
    with pytest.raises(ValueError, match=said):
        resampled(values, groups)
