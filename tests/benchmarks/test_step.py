from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import toys

from benchmarks.step import PARTS, ours, step_costs, straight
from benchmarks.tokens import PaddedBlock
from esvit_pl.backbones.swin import SwinBlock
from esvit_pl.profiling.training import Noise


@pytest.mark.parametrize("weights", [{}, {"region_weight": 0}], ids=["view_region", "view"])
def test_both_forms_are_the_same_training(weights):
    backbone, objective = toys.backbone().double(), toys.objective(**weights).double()
    forms = []
    for form in (straight, ours):
        torch.manual_seed(0)
        forms.append(form(deepcopy(backbone), deepcopy(objective)))
        forms[-1].step.double()
    wanted, mine = (form.step for form in forms)
    mine.load_state_dict(wanted.state_dict())
    before = toys.state(mine.teacher)
    batch = Noise(mine, (32, 32, 20, 20), 2, torch.float64).batch()
    for _ in range(3):
        theirs, our = (form(batch) for form in forms)
        assert our.item() == pytest.approx(theirs.item(), rel=1e-10)
    for part in ("student", "teacher", "objective"):
        # AdamW divides rounding by rounding where the true gradient is 0, as at key biases.
        states = [
            {name: value for name, value in toys.state(getattr(step, part)).items() if not name.endswith("qkv.bias")}
            for step in (mine, wanted)
        ]
        assert toys.largest_difference(*states) < 1e-8
    assert toys.largest_difference(before, toys.state(mine.teacher)) > 0


def test_the_straightforward_form_pads_and_ours_does_not():
    steps = [form(toys.backbone(), toys.objective()).step for form in (straight, ours)]
    kinds = [
        {type(block) for stage in network.backbone.stages for block in stage.blocks}
        for network in (steps[0].student, steps[0].teacher, steps[1].student)
    ]
    assert kinds == [{PaddedBlock}, {PaddedBlock}, {SwinBlock}]


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
