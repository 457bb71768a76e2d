from __future__ import annotations

import pytest
import torch

from esvit_pl.metrics import MEASURES, RegionMap, correspond, correspondence_sums, retrieved

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
PLAIN, MIRRORED = torch.tensor([False]), torch.tensor([True])


def one_hot(order):
    return torch.eye(len(order))[list(order)][None]


def test_the_same_view_twice_is_all_right():
    view = RegionMap(torch.randn(1, 12, 5), (3, 4), WHOLE, PLAIN)
    found = correspond(view, view)
    assert found.match[0].tolist() == list(range(12))
    assert found.place[0, 6].tolist() == [1.5, 2.5]
    number, exact, near, distance, *_ = correspondence_sums(found, (3, 4), 96).tolist()
    assert [number, exact, near] == [12, 12, 12]
    assert distance == pytest.approx(0)


def test_a_mirror_image_by_hand():
    first = RegionMap(one_hot(range(6)), (2, 3), WHOLE, PLAIN)
    second = RegionMap(one_hot([2, 1, 0, 5, 4, 3]), (2, 3), WHOLE, MIRRORED)
    found = correspond(first, second)
    assert found.match[0].tolist() == [2, 1, 0, 5, 4, 3]
    assert correspondence_sums(found, (2, 3), 60)[:4].tolist() == pytest.approx([6, 6, 6, 0])


def test_boxes_by_hand():
    """The second view shows the right half of the image, in 4 x 4 cells; the first one the whole, in 2 x 2."""
    first = RegionMap(torch.zeros(1, 4, 1), (2, 2), WHOLE, PLAIN)
    second = RegionMap(torch.zeros(1, 16, 1), (4, 4), torch.tensor([[0.5, 0.0, 0.5, 1.0]]), PLAIN)
    found = correspond(first, second)
    assert found.inside[0].tolist() == [False, True, False, True]
    # middles of the right cells: (0.25, 0.75) and (0.75, 0.75) of the image as (row, column)
    assert found.place[0, [1, 3]].tolist() == [[1.0, 2.0], [3.0, 2.0]]
    mirrored = correspond(first, second._replace(flipped=MIRRORED))
    assert mirrored.place[0, [1, 3]].tolist() == [[1.0, 2.0], [3.0, 2.0]]  # the middle stays the middle
    off = correspond(first._replace(boxes=torch.tensor([[0.0, 0.0, 0.75, 1.0]])), second._replace(flipped=MIRRORED))
    # the right middle lies at 9/16 of the image: 1/8 of the second view, 7/8 of its mirror image
    assert off.place[0, 1].tolist() == [1.0, 3.5]


def test_measures_and_chance_by_hand():
    """Two regions of the first view lie in the second one, a map of 1 x 4 cells of 10 pixels: one is matched to its own
    cell, the other one two cells away."""
    second = RegionMap(one_hot(range(4)), (1, 4), WHOLE, PLAIN)
    first = RegionMap(torch.eye(4)[[0, 3]][None], (1, 2), torch.tensor([[0.0, 0.0, 0.5, 1.0]]), PLAIN)
    found = correspond(first, second)
    assert found.match[0].tolist() == [0, 3]
    assert found.place[0].tolist() == [[0.5, 0.5], [0.5, 1.5]]
    sums = dict(
        zip(
            ["number", *MEASURES, *(f"chance {name}" for name in MEASURES)],
            correspondence_sums(found, (1, 4), 40).tolist(),
            strict=True,
        )
    )
    assert sums == pytest.approx({
        "number": 2, "exact": 1, "near": 1, "distance": 20,
        "chance exact": 0.5, "chance near": 2 / 4 + 3 / 4,
        "chance distance": (0 + 10 + 20 + 30) / 4 + (10 + 0 + 10 + 20) / 4,
    })  # fmt: skip


def test_no_overlap_counts_nothing():
    first = RegionMap(torch.randn(1, 4, 3), (2, 2), torch.tensor([[0.0, 0.0, 0.4, 0.4]]), PLAIN)
    second = RegionMap(torch.randn(1, 4, 3), (2, 2), torch.tensor([[0.5, 0.5, 0.4, 0.4]]), PLAIN)
    assert correspondence_sums(correspond(first, second), (2, 2), 32).tolist() == [0] * 7


def test_pairs_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    boxes, flips = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.5, 0.6]]), torch.tensor([False, True])
    both = correspond(RegionMap(a, (2, 2), boxes, flips), RegionMap(b, (2, 2), boxes.flip(0), flips.flip(0)))
    for i in range(2):
        one = correspond(
            RegionMap(a[i : i + 1], (2, 2), boxes[i : i + 1], flips[i : i + 1]),
            RegionMap(b[i : i + 1], (2, 2), boxes[1 - i : 2 - i], flips[1 - i : 2 - i]),
        )
        for whole, part in zip(both, one, strict=True):
            torch.testing.assert_close(whole[i : i + 1], part)


def test_retrieval_by_hand():
    """Two images of two regions. The second image's first region looks like the first image's first one."""
    boxes, flips = WHOLE.expand(2, 4), torch.tensor([False, False])
    first = RegionMap(torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 0]]]), (1, 2), boxes, flips)
    second = RegionMap(torch.tensor([[[1.0, 0, 0], [0, 0.1, 1]], [[0, 0, 1], [0, 1, 0]]]), (1, 2), boxes, flips)
    # image 0: its regions find (0, 0) and (1, 1); image 1: (1, 0), and (1, 1) and (0, 0) are equally near, so the first
    assert retrieved(first, second).tolist() == [4, 2, 2]
    away = second._replace(boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]]))
    assert retrieved(first, away).tolist() == [3, 2, 1]  # of image 1 the right half is not shown; its left is wide now
