from __future__ import annotations

import math

import pytest
import torch

from esvit_pl.losses import match_views, partition_and_target
from esvit_pl.objectives import EsViTObjective, Progress, Views
from esvit_pl.precision import factors

START = Progress(0, 1)
SMALL = {"num_prototypes": 9, "out_dim": 4, "hidden_dim": 8}


def views(count: int, dtype: torch.dtype = torch.float32) -> Views:
    seen = Views(pooled=[torch.randn(2, 5) for _ in range(count)], regions=[], grids=[])
    for v in range(count):
        n = 4 if v < 2 else 1
        seen.regions.append(torch.randn(2, n, 5, dtype=dtype))
        seen.z.setdefault("view", []).append(torch.randn(2, 4, dtype=dtype))
        seen.z.setdefault("region", []).append(torch.randn(2, n, 4, dtype=dtype))
    seen.prototypes = {name: torch.randn(9, 4, dtype=dtype) for name in ("view", "region")}
    return seen


def test_terms_are_reported_apart_and_weighted_in_the_total():
    losses = EsViTObjective(**SMALL, view_weight=0.25, region_weight=2.0)(views(3), views(2), {}, START)
    assert set(losses.terms) == {"view", "region"}
    assert losses.total.item() == pytest.approx(0.25 * losses.terms["view"].item() + 2 * losses.terms["region"].item())


def test_dino_is_the_objective_without_regions():
    objective = EsViTObjective(**SMALL, view_weight=1, region_weight=0)
    assert list(objective.heads(5, 5)) == ["view"]
    assert list(objective.centers) == ["view"]
    losses = objective(views(3), views(2), {}, START)
    assert losses.total.item() == pytest.approx(losses.terms["view"].item())


def test_a_region_loss_alone():
    losses = EsViTObjective(**SMALL, view_weight=0, region_weight=1)(views(3), views(2), {}, START)
    assert list(losses.terms) == ["region"]


def test_before_it_joins_the_region_head_is_not_active_and_the_view_loss_has_weight_one():
    objective = EsViTObjective(**SMALL, region_start_epoch=2)
    assert objective.active(Progress(1, 4)) == {"view"}
    assert objective.active(Progress(2, 4)) == {"view", "region"}
    before = objective(views(3), views(2), {}, Progress(1, 4))
    assert before.total.item() == pytest.approx(before.terms["view"].item())
    objective.commit(objective.collect())
    assert objective.centers["region"].value.eq(0).all()
    assert objective.centers["view"].value.ne(0).all()


def test_losses_are_taken_in_float32_under_autocast_and_in_float64_where_it_is():
    torch.manual_seed(0)
    student, teacher = views(3), views(2)
    objective = EsViTObjective(**SMALL)
    plain = objective(student, teacher, {}, START).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(student, teacher, {}, START).total, plain)
    halves = [views(3, torch.bfloat16), views(2, torch.bfloat16)]
    assert objective(*halves, {}, START).total.dtype == torch.float32
    doubles = [views(3, torch.float64), views(2, torch.float64)]
    assert EsViTObjective(**SMALL).double()(*doubles, {}, START).total.dtype == torch.float64


def test_kernels_are_chosen_by_the_autocast_round_the_objective(monkeypatch):
    """Not by the one inside, which is switched off for the matching of regions."""
    seen = []

    def watched(z, *given):
        seen.append(factors("cpu"))
        return partition_and_target(z, *given)

    monkeypatch.setattr("esvit_pl.objectives.distributions.partition_and_target", watched)
    matched = []
    monkeypatch.setattr(
        "esvit_pl.objectives.esvit.match_views", lambda *views: matched.append(factors("cpu")) or match_views(*views)
    )
    with torch.autocast("cpu", torch.bfloat16):
        EsViTObjective(**SMALL)(views(3), views(2), {}, START)
    assert seen == [torch.bfloat16] * 2
    assert matched == [torch.float32]


def test_in_eval_mode_the_centers_do_not_watch():
    objective = EsViTObjective(**SMALL).eval()
    objective(views(3), views(2), {}, START)
    assert objective.collect().sum.eq(0).all()


def test_diagnostics_tell_entropy_and_divergence_apart():
    losses = EsViTObjective(**SMALL)(views(3), views(2), {}, START)
    entropy, kl = losses.diagnostics["view_teacher_entropy"], losses.diagnostics["view_kl"]
    assert (entropy + kl).item() == pytest.approx(losses.terms["view"].item(), rel=1e-5)
    assert 0 < losses.diagnostics["matched_share"] <= 1


@pytest.mark.parametrize("region_weight", [0.0, 0.5])
def test_diagnostics_of_health_need_no_further_number(region_weight):
    objective = EsViTObjective(**SMALL, region_weight=region_weight)
    diagnostics = objective(views(3), views(2), {}, START).diagnostics
    share = diagnostics["view_teacher_entropy"] / math.log(SMALL["num_prototypes"])
    assert diagnostics["view_teacher_entropy_share"].item() == pytest.approx(share.item())
    assert 0 < share < 1
    assert not any(value.requires_grad for value in diagnostics.values())
    assert ("region_teacher_entropy_share" in diagnostics) == (region_weight > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view_weight": 0.0, "region_weight": 0.0}, "one of them positive, got view_weight=0.0, region_weight=0.0"),
        ({"region_weight": -1.0}, "weights of 0 or more"),
        ({"region_start_epoch": 3, "region_weight": 0.0}, "region_start_epoch=3 needs a view loss to begin with"),
        ({"teacher_temp_warmup_epochs": -1}, "teacher_temp_warmup_epochs of 0 or more, got -1"),
        ({"teacher_temp_end": 0.05}, "teacher_temp_end=0.05 and teacher_temp_schedule=constant do not go together"),
        ({"teacher_temp_schedule": "linear"}, "teacher_temp_end=None and teacher_temp_schedule=linear do not go"),
        ({"student_temp": 0.0}, "positive student_temp, got 0.0"),
        ({"center_momentum": 2.0}, "center_momentum between 0 and 1, got 2.0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EsViTObjective(**{**SMALL, **change})
