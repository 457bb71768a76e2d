from __future__ import annotations

import pytest
import torch

from benchmarks.loss import loss_costs, problem, straightforward, streamed
from esvit_pl.losses import RegionLoss


def test_both_forms_are_one_loss():
    given = problem([4, 4, 2], batch_size=2, num_prototypes=50, dim=8)
    wanted = straightforward(given)
    assert wanted.item() == pytest.approx(streamed(given, RegionLoss(0.1)).item(), rel=1e-5)
    # By hand, one pair of regions: 50 logits each side.
    t, s, b, n = 1, 2, 0, 1
    q = ((given.teacher_prototypes @ given.teacher_z[t][b, given.matches[t, s][b, n]] - given.center) / 0.04).softmax(0)
    one = torch.nn.functional.cross_entropy(given.prototypes @ given.z[s][b, n] / 0.1, q)
    alone = problem([4, 4, 2], batch_size=2, num_prototypes=50, dim=8)
    alone.matches = {(t, s): alone.matches[t, s][:1, 1:]}
    alone.z = [z[:1, 1:2] for z in alone.z]
    alone.teacher_z = [z[:1] for z in alone.teacher_z]
    assert straightforward(alone).item() == pytest.approx(one.item(), rel=1e-5)


def test_costs_of_both_parts():
    region, view = loss_costs(batch_size=2, num_prototypes=500, dim=4, regions=(9, 9, 4), repeats=1)
    assert (region.part, view.part) == ("region loss", "view loss")
    for cost in (region, view):
        assert cost.ratio == pytest.approx(cost.straight_seconds / cost.our_seconds)
        assert cost.error < 1e-5
    assert region.straight_bytes > 44 * 500 * 4  # the student's logits alone
