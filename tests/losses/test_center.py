from __future__ import annotations

import pytest
import torch

from esvit_pl.losses import Center


def test_moves_by_the_mean_logits_of_the_whole_window():
    torch.manual_seed(0)
    center, w = Center(7, 3, momentum=0.9), torch.randn(7, 3)
    center.value.copy_(torch.randn(7))
    before, parts = center.value.clone(), [torch.randn(2, 3), torch.randn(4, 5, 3)]
    for part in parts:
        center.observe(part, w)
    assert torch.equal(center.value, before)  # nothing moves before the commit
    center.commit(center.window())
    rows = torch.cat([part.flatten(0, -2) for part in parts])
    assert torch.allclose(center.value, 0.9 * before + 0.1 * (rows @ w.mT).mean(0), atol=1e-6)


def test_windows_of_ranks_add_up():
    w = torch.randn(7, 3)
    ranks, whole = [Center(7, 3), Center(7, 3)], Center(7, 3)
    parts = [torch.randn(2, 3), torch.randn(6, 3)]
    for center, part in zip(ranks, parts, strict=True):
        center.observe(part, w)
    whole.observe(torch.cat(parts), w)
    ranks[0].commit(ranks[0].window() + ranks[1].window())
    whole.commit(whole.window())
    assert torch.allclose(ranks[0].value, whole.value, atol=1e-6)


def test_between_steps_nothing_is_kept_and_no_checkpoint_holds_it():
    center = Center(7, 3)
    center.observe(torch.randn(2, 3), torch.randn(7, 3))
    assert list(center.state_dict()) == ["value"]
    center.reset()
    assert center.window().eq(0).all()
    before = center.value.clone()
    center.commit(center.window())
    assert torch.equal(center.value, before)


def test_half_precision_projections_are_not_summed_in_half_precision():
    center = Center(2, 1)
    center.observe(torch.full((4096, 1), 1.0), torch.ones(2, 1))
    center.observe(torch.full((1, 1), 0.125), torch.ones(2, 1))
    assert center.window()[0].item() == pytest.approx(4096.125)
