"""Measures of features of which only sums are kept: the same as those of all features at once."""

from __future__ import annotations

import golden_files
import pytest
import torch

from esvit_pl.metrics import (
    diversity_of,
    effective_rank,
    effective_rank_of,
    lidar,
    lidar_of,
    merged,
    moments,
    rankme,
    rankme_of,
    region_diversity,
    region_statistics,
)


def in_parts(rows, size=7):
    return merged([moments(part) for part in rows.split(size)])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("evaluation_label_free"), ids=lambda path: path.stem)
def test_golden(path):
    golden = golden_files.read(path)
    delta, epsilon = (float(golden.settings[name]) for name in ("delta", "epsilon"))
    features, clones = golden.tensors["features"], golden.tensors["clones"]
    assert float(rankme_of(in_parts(features), epsilon)) == pytest.approx(float(golden.tensors["rankme"]), abs=1e-7)
    views, means = in_parts(clones.flatten(0, 1)), in_parts(clones.mean(1))
    assert float(lidar_of(views, means, delta, epsilon)) == pytest.approx(float(golden.tensors["lidar"]), abs=1e-7)


def test_moments_by_hand():
    whole = in_parts(torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]]), size=1)
    assert whole.number == 3
    assert whole.mean.tolist() == [2.0, 1.0]
    assert whole.scatter.tolist() == [[2.0, 0.0], [0.0, 6.0]]


@pytest.mark.parametrize("images", [5, 40, 500], ids=lambda images: f"{images} images")
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_they_are_those_of_all_features(images, offset):
    draw = torch.Generator().manual_seed(0)
    falling = torch.arange(24.0).mul(-0.3).exp()
    features = torch.randn(images, 24, generator=draw, dtype=torch.float64) * falling + offset
    assert float(effective_rank_of(in_parts(features))) == pytest.approx(float(effective_rank(features)), rel=1e-6)
    assert float(rankme_of(in_parts(features))) == pytest.approx(float(rankme(features)), rel=1e-6)
    regions = features[:, None] + torch.randn(images, 9, 24, generator=draw)
    statistics = region_statistics(regions)
    assert float(diversity_of(in_parts(statistics))) == pytest.approx(float(region_diversity(regions)), rel=1e-6)
    clones = regions[:, :4]
    views, means = in_parts(clones.flatten(0, 1)), in_parts(clones.mean(1))
    assert float(lidar_of(views, means)) == pytest.approx(float(lidar(clones)), rel=1e-6)


def test_equal_rows_have_neither_rank_nor_diversity():
    row = 123.456 + torch.randn(1, 48)
    assert effective_rank_of(in_parts(row.repeat(65, 1))) == 0
    assert diversity_of(in_parts(region_statistics(row.repeat(30, 1).view(10, 3, 48)))) == 0
    assert lidar_of(in_parts(row.repeat(20, 1)), in_parts(row.repeat(10, 1))) == 0


def test_what_is_not_finite_stays_visible():
    features = torch.randn(4, 3)
    features[1, 1] = torch.nan
    broken = moments(features)
    assert effective_rank_of(broken).isnan()
    assert rankme_of(broken).isnan()
    assert diversity_of(broken).isnan()
    assert lidar_of(broken, broken).isnan()
