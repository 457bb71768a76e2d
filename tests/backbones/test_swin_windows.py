from __future__ import annotations

import pytest
import torch

from esvit_pl.backbones.swin_windows import Strip, shifted_window_mask, strips, window_plan

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("length", "window", "shift", "wanted"),
    [
        (24, 7, 0, [(3, range(7)), (1, range(3))]),  # stage 1 at 96 px, padded to 28
        (24, 7, 3, [(3, range(7)), (1, (4, 5, 6))]),  # 3 to 23 fill three windows; the roll puts padding before 0 to 2
        (12, 7, 3, [(1, range(7)), (1, (0, 1, 4, 5, 6))]),  # 10 and 11, two of padding, 0 to 2
        (3, 7, 0, [(1, range(3))]),
        (14, 7, 3, [(2, range(7))]),  # no padding
        (8, 7, 3, [(1, range(5)), (1, (4, 5, 6))]),  # padding in both windows
        (2, 7, 3, [(1, (4, 5))]),  # shorter than the shift
    ],
)
def test_strips_by_hand(length, window, shift, wanted):
    found = strips(length, window, shift)
    assert found == tuple(Strip(windows, tuple(positions)) for windows, positions in wanted)
    assert sum(strip.length for strip in found) == length


@pytest.mark.parametrize(("window", "shift"), [(4, 0), (4, 2), (7, 3)])
def test_every_token_has_its_place(window, shift):
    """The rolled map, cut into strips, holds the tokens in the order of the rolled padded map."""
    for length in range(1, 3 * window + 1):
        padded = length + -length % window
        order = [(place + shift) % padded for place in range(padded)]
        plan = window_plan(length, 1, window, shift, CPU, torch.float32)
        assert torch.arange(length).roll(-plan.roll[0]).tolist() == [token for token in order if token < length]
        places = [place for strip in plan.rows for _ in range(strip.windows) for place in strip.positions]
        assert places == [place % window for place, token in enumerate(order) if token < length]


def test_a_plan_by_hand():
    """A map of 2 x 3 in windows of 2: padded to 2 x 4, the right window has one column of tokens."""
    plan = window_plan(2, 3, 2, 0, CPU, torch.float32)
    assert plan.roll == (0, 0)
    full, partial = plan.groups[0]
    assert (full.num_windows, partial.num_windows) == (1, 1)
    assert full.position_index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert partial.position_index.tolist() == [[4, 1, 3, 0], [7, 4, 6, 3]]  # its tokens 0 and 2, then 1 and 3
    assert full.mask is None


def test_masks_of_a_plan_are_those_of_its_windows():
    plan = window_plan(4, 3, 2, 1, CPU, torch.float32)
    assert plan.roll == (1, 1)
    ((left, right),) = plan.groups
    whole = shifted_window_mask(4, 4, 2, 1, CPU, torch.float32)
    assert torch.equal(left.mask[:, 0], whole[[0, 2]])  # no padding in either window
    assert torch.equal(right.mask[:, 0], whole[[1, 3]][:, [1, 3]][..., [1, 3, 0, 2]])  # the roll brought column 0 last


def test_mask_by_hand():
    mask = shifted_window_mask(4, 4, 2, 1, CPU, torch.float32)
    assert mask.shape == (4, 4, 4)
    assert mask[0].eq(0).all()  # the first window rolled nothing in
    assert mask[1, 0].tolist() == [0, -100, 0, -100]  # right edge: columns of two origins
    assert mask[3, 0].tolist() == [0, -100, -100, -100]  # corner: four origins
