from __future__ import annotations

import math

import golden_files
import pytest
import torch
import torch.nn.functional as F

from esvit_pl.metrics import (
    HEALTHY,
    Healthy,
    effective_rank,
    entropy_share,
    feature_spread,
    largest_entropy,
    lidar,
    rankme,
    region_diversity,
)
from esvit_pl.metrics.collapse import ADVICE, measure_of, symptom


def test_feature_spread_is_the_mean_cosine_distance_of_different_rows() -> None:
    features = torch.randn(7, 5)
    cosine = F.normalize(features, dim=1) @ F.normalize(features, dim=1).T
    pairs = ~torch.eye(7, dtype=torch.bool)
    assert feature_spread(features).item() == pytest.approx((1 - cosine[pairs]).mean().item(), abs=1e-6)
    assert feature_spread(features * torch.rand(7, 1)).item() == pytest.approx(
        feature_spread(features).item(), abs=1e-6
    )


def test_feature_spread_is_one_for_uniform_rows_and_two_for_two_opposite_ones() -> None:
    assert feature_spread(torch.randn(4000, 16)).item() == pytest.approx(1, abs=0.01)
    assert feature_spread(torch.randn(8, 16) * 1e-4 + 1).item() < 1e-6
    assert feature_spread(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(2)


def test_effective_rank_by_hand() -> None:
    # Centred already; singular values 3 and 1 (times the root of 2): exp of the entropy of (3/4, 1/4).
    features = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_rank(features).item() == pytest.approx(expected)
    assert effective_rank(100 * features + 7).item() == pytest.approx(expected, rel=1e-4)
    line = torch.arange(5.0)[:, None] * torch.tensor([1.0, 2.0, -1.0])
    assert effective_rank(line).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.randn(4000, 6)).item() == pytest.approx(6, abs=0.05)


def test_a_weak_direction_counts_among_many_images() -> None:
    features = torch.randn(200_000, 3) * torch.tensor([1.0, 1.0, 0.01])
    assert effective_rank(features).item() == pytest.approx(effective_rank(features.double()).item(), rel=1e-3)
    assert effective_rank(features).item() > effective_rank(features[:, :2]).item() + 0.05


def test_region_diversity_by_hand() -> None:
    # Two images of two regions; means 0 and 4, variance within 1, between 4.
    regions = torch.tensor([[[-1.0], [1.0]], [[3.0], [5.0]]])
    assert region_diversity(regions).item() == pytest.approx(1 / 5)
    assert region_diversity(regions - regions.mean(1, keepdim=True)).item() == pytest.approx(1)
    assert region_diversity(regions.mean(1, keepdim=True).expand(2, 2, 1)).item() == 0


def test_entropy_share() -> None:
    assert entropy_share(torch.full((3, 2, 8), 1 / 8)).item() == pytest.approx(1)
    assert entropy_share(torch.eye(8)).item() == 0
    two_of_four = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert entropy_share(two_of_four).item() == pytest.approx(0.5)
    assert entropy_share(torch.ones(3, 1)).item() == 0
    assert largest_entropy(8) == math.log(8)


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456])
def test_equal_rows_have_neither_spread_nor_rank_nor_diversity(value) -> None:
    row = torch.full((1, 48), value) + 0.3 * torch.randn(1, 48) * (value > 0)
    assert feature_spread(row.repeat(65, 1)).item() == pytest.approx(0, abs=1e-9)
    assert effective_rank(row.repeat(65, 1)).item() == 0
    assert region_diversity(row.repeat(30, 1).view(10, 3, 48)).item() == 0


def test_one_row_none_and_one_image() -> None:
    for features in (torch.randn(1, 4), torch.randn(0, 4)):
        assert feature_spread(features).item() == effective_rank(features).item() == 0
    assert region_diversity(torch.randn(1, 3, 4)).item() == pytest.approx(1)
    assert region_diversity(torch.randn(5, 1, 4)).item() == 0


def test_what_is_not_finite_stays_visible() -> None:
    features = torch.randn(4, 3)
    features[1, 1] = torch.nan
    assert feature_spread(features).isnan()
    assert effective_rank(features).isnan()
    assert region_diversity(features[None].expand(2, 4, 3)).isnan()


@pytest.mark.parametrize("function", [feature_spread, effective_rank, entropy_share])
def test_half_precision_is_widened_float64_stays_and_no_gradient_flows(function) -> None:
    features = torch.rand(6, 4, requires_grad=True)
    half, double = function(features.bfloat16()), function(features.double())
    assert (half.dtype, double.dtype) == (torch.float32, torch.float64)
    assert half.item() == pytest.approx(double.item(), rel=0.05)
    assert not double.requires_grad


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"features must be \(n, d\), got \(2, 3, 4\); average or flatten"):
        feature_spread(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"features must be \(b, r, c\), got \(2, 3\)"):
        region_diversity(torch.zeros(2, 3))


def test_a_range_includes_its_ends_and_never_nan() -> None:
    assert Healthy(0.1, 0.5).holds(0.1)
    assert not Healthy(0.1, 0.5).holds(0.51)
    assert Healthy(low=2.0).holds(1e9)
    assert not Healthy(low=2.0).holds(math.nan)
    assert Healthy().holds(math.nan)


def test_names_of_several_heads_lead_to_one_measure() -> None:
    assert [measure_of(name) for name in ("kl", "region_kl", "weakly_kl", "view_teacher_entropy_share")] == [
        "kl",
        "kl",
        "kl",
        "teacher_entropy_share",
    ]
    assert measure_of("skl") is None
    assert measure_of("view_teacher_entropy") is None


def test_a_symptom_says_what_why_and_what_to_do() -> None:
    text = symptom("view_teacher_entropy_share", 0.9991, Healthy(high=0.98))
    assert text.startswith("view_teacher_entropy_share = 0.999 above 0.98: the teacher's distributions are uniform")
    assert "a teacher temperature too high" in text
    assert symptom("center_norm", 7, Healthy(high=5.0)) == "center_norm = 7 above 5"
    assert symptom("kl", 3.0, Healthy(high=2.0)) == "kl = 3 above 2"
    assert symptom("kl", math.nan, Healthy(low=0.01)).startswith("kl is not a number: ")
    assert set(ADVICE) == {name for name, healthy in HEALTHY.items() if healthy != Healthy()}


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("evaluation_label_free"), ids=lambda path: path.stem)
def test_golden_rankme(path):
    golden = golden_files.read(path)
    found = rankme(golden.tensors["features"], epsilon=float(golden.settings["epsilon"]))
    assert float(found) == pytest.approx(float(golden.tensors["rankme"]), abs=1e-9)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("evaluation_label_free"), ids=lambda path: path.stem)
def test_golden_lidar(path):
    golden = golden_files.read(path)
    settings = {name: float(golden.settings[name]) for name in ("epsilon", "delta")}
    assert float(lidar(golden.tensors["clones"], **settings)) == pytest.approx(float(golden.tensors["lidar"]), abs=1e-9)


def test_lidar_counts_the_directions_in_which_images_differ_more_than_their_views():
    images = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, -3.0, 0.0]], dtype=torch.float64)
    views = torch.tensor([[0.1, 0.1, 2.0], [-0.1, -0.1, -2.0]], dtype=torch.float64)  # the third is of views alone
    assert lidar(images[:, None] + views) == pytest.approx(2.0, abs=1e-4)
    assert lidar(images[:1, None] + views) == 0  # one image
    assert lidar(torch.ones(4, 2, 3)) == 0
    assert math.isnan(lidar(torch.full((4, 2, 3), math.nan)))
    with pytest.raises(ValueError, match=r"\(images, views, channels\)"):
        lidar(torch.ones(4, 3))


def test_rankme_of_what_cannot_be_measured():
    assert math.isnan(rankme(torch.full((3, 2), math.nan)))
    assert rankme(torch.zeros(0, 2)) == 0
    assert rankme(torch.ones(5, 3)) == pytest.approx(1.0, abs=1e-4)  # its mean counts as a direction
