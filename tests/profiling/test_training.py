"""The training that benchmarks and the memory prediction run is the Trainer's."""

from __future__ import annotations

import pytest
import torch
import toys

from esvit_pl.objectives.interface import Losses, Objective
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.training import HALFWAY, Noise, Training


def test_a_step_moves_student_centre_and_teacher():
    module = toys.pretrainer(freeze_prototypes_epochs=9)
    training = Training(module.step, OptimizerRecipe())
    before = {name: toys.state(getattr(module, name)) for name in ("student", "teacher", "objective")}
    loss = training(Noise(module.step, toys.SIDES, 4).batch())
    assert loss.isfinite()
    for name, state in before.items():
        assert toys.largest_difference(state, toys.state(getattr(module, name))) > 0
    moved = training.optimizer.param_groups[0]["lr"]
    assert moved == OptimizerRecipe().lr_at(HALFWAY, global_batch=256) > 0


def test_two_halves_of_a_batch_are_one_batch():
    steps = [toys.pretrainer().step.double() for _ in range(2)]
    batch = Noise(steps[0], toys.SIDES, 4, torch.float64).batch()
    halves = [{**batch, "views": [view[part] for view in batch["views"]]} for part in (slice(2), slice(2, 4))]
    whole, split = (Training(step, OptimizerRecipe("sgd")) for step in steps)
    loss = whole(batch)
    first = split(halves[0], first=True, last=False, share=0.5)
    assert toys.largest_difference(toys.state(steps[0].teacher), toys.state(steps[1].teacher)) > 0
    second = split(halves[1], first=False, last=True, share=0.5)
    assert (first + second).item() == pytest.approx(loss.item())
    assert toys.largest_difference(toys.state(steps[0].student), toys.state(steps[1].student)) < 1e-9


def test_masks_are_drawn_for_the_global_views_of_an_objective_that_uses_them():
    class Masked(Objective):
        uses_masks, uses_teacher = True, False

        def heads(self, width, region_width):
            return torch.nn.ModuleDict({"z": torch.nn.Linear(width, 4)})

        def forward(self, student, teacher, batch, progress):
            assert [None if mask is None else tuple(mask.shape) for mask in batch["masks"]] == [(2, 4, 4)] * 2 + [None]
            return Losses({"z": student.z["z"][0].square().mean()}, {"z": 1.0})

    step = PretrainingStep(toys.backbone(), Masked())
    noise = Noise(step, (32, 32, 16), 2)
    assert Training(step, OptimizerRecipe())(noise.batch()).isfinite()
    assert "masks" not in Noise(toys.pretrainer().step, (32, 32), 2).batch()
