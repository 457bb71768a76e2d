from __future__ import annotations

import math

import pytest
import torch
import toys

from esvit_pl.backbones import IGPT
from esvit_pl.losses import next_token_loss
from esvit_pl.objectives import IGPTObjective, Progress
from esvit_pl.pretraining import PretrainingStep

NOW = Progress(0, 10)


def step() -> PretrainingStep:
    torch.manual_seed(0)
    return PretrainingStep(IGPT(width=16, depth=2, num_heads=2, side=4), IGPTObjective())


def test_the_loss_begins_at_the_logarithm_of_the_number_of_colors():
    batch = {"views": [torch.randn(4, 3, 16, 16)]}
    losses = step()(batch, NOW)
    assert losses.terms["color"].item() == pytest.approx(math.log(512), abs=1e-6)
    assert losses.diagnostics["color_chance_share"].item() == pytest.approx(1.0)


def test_a_case_worked_out_by_hand():
    """Odds of 1 : 3 for the first token and of 1 : 1 for the second: (ln 4 - ln 3 + ln 2) / 2."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]]])
    assert next_token_loss(logits, torch.tensor([[1, 0]])).item() == pytest.approx(math.log(8 / 3) / 2)


def test_an_image_can_be_learnt_by_heart():
    training, batch = step(), {"views": [torch.randn(1, 3, 4, 4)]}
    optimizer = torch.optim.Adam(training.student.parameters(), lr=0.01)
    for number in range(100):
        loss = training(batch, Progress(number, 100)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert all(parameter.grad is not None for parameter in training.student.parameters())


def test_a_backbone_that_sees_all_at_once_is_refused():
    with pytest.raises(ValueError, match=r"has not seen yet, and Swin sees all at once; choose backbone=igpt_small"):
        PretrainingStep(toys.backbone(), IGPTObjective())
