from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import toys

from esvit_pl.backbones.swin import SwinBlock
from esvit_pl.benchmarks.step import PARTS, Step, StraightStep, step_costs
from esvit_pl.benchmarks.tokens import PaddedBlock


def views(*sides: int) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(2, 3, side, side, dtype=torch.float64) for side in sides]


@pytest.mark.parametrize("weights", [{}, {"region_weight": 0}], ids=["view_region", "view"])
def test_both_forms_are_the_same_training(weights):
    backbone, objective = toys.backbone().double(), toys.objective(**weights).double()
    torch.manual_seed(0)
    straight = StraightStep(deepcopy(backbone), deepcopy(objective), views(32, 32, 20, 20))
    ours = Step(deepcopy(backbone), deepcopy(objective), views(32, 32, 20, 20))
    for step in (straight, ours):
        step.student.double(), step.teacher.double()
    for part in ("student", "teacher"):
        getattr(ours, part).load_state_dict(getattr(straight, part).state_dict())
    before = toys.state(ours.teacher)
    for _ in range(3):
        assert ours().item() == pytest.approx(straight().item(), rel=1e-10)
    for part in ("student", "teacher", "objective"):
        # AdamW divides rounding by rounding where the true gradient is 0, as at key biases.
        mine, wanted = (
            {name: value for name, value in toys.state(getattr(form, part)).items() if not name.endswith("qkv.bias")}
            for form in (ours, straight)
        )
        assert toys.largest_difference(mine, wanted) < 1e-8
    assert toys.largest_difference(before, toys.state(ours.teacher)) > 0


def test_the_straightforward_form_pads_and_ours_does_not():
    forms = [
        form(toys.backbone(), toys.objective(), [v.float() for v in views(32, 32)]) for form in (StraightStep, Step)
    ]
    kinds = [{type(block) for stage in form.student.backbone.stages for block in stage.blocks} for form in forms]
    assert kinds == [{PaddedBlock}, {SwinBlock}]
    assert {type(block) for stage in forms[0].teacher.backbone.stages for block in stage.blocks} == {PaddedBlock}


def test_every_part_and_the_whole_are_measured_and_what_is_given_stays():
    backbone, objective = toys.backbone(), toys.objective()
    before = toys.state(backbone)
    *parts, whole = step_costs(backbone, objective, batch_size=1, sides=(32, 32, 16), repeats=2)
    assert [row.part for row in parts] == list(PARTS)
    assert whole.part == "whole step"
    assert min(row.ratio for row in parts) > 0
    assert whole.error < 1e-5
    weights = sum(p.numel() for p in backbone.parameters()) * 4
    assert min(whole.straight_bytes, whole.our_bytes) > 4 * weights  # student, teacher, two moments
    assert toys.largest_difference(before, toys.state(backbone)) == 0
    assert objective.centers["view"].value.norm() == 0


def test_stochastic_depth_makes_no_error_and_recomputing_takes_less_memory():
    backbone, recomputed = (toys.backbone(drop_path_rate=0.3, depths=[2, 4]) for _ in range(2))
    sizes = {"batch_size": 4, "sides": (64, 64, 32), "repeats": 1}
    objective = toys.objective()
    *_, plain = step_costs(backbone, objective, **sizes)
    *_, whole = step_costs(recomputed, objective, grad_checkpointing=True, **sizes)
    assert max(plain.error, whole.error) < 1e-5
    assert whole.our_bytes < plain.our_bytes


def test_networks_can_run_in_bfloat16():
    *_, whole = step_costs(toys.backbone(), toys.objective(), batch_size=1, sides=(32, 32), repeats=1, bf16=True)
    assert whole.error < 0.1
