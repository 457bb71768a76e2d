from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from esvit_pl.metrics import (
    VOID,
    confusion,
    correct_keypoints,
    iou,
    knn_predict,
    majority,
    match_places,
    neighbour_votes,
    region_labels,
    upsampled,
)


@pytest.mark.parametrize("there", [5, 3])
def test_mean_iou_is_that_of_torchmetrics(there):
    """Also where classes occur neither in masks nor in predictions, and where one is predicted and never true."""
    mask, predicted = torch.randint(0, there, (4, 9, 7)), torch.randint(0, there + 1, (4, 9, 7)).clamp(max=4)
    mask[torch.rand(mask.shape) < 0.2] = VOID
    theirs = MulticlassJaccardIndex(5, average="macro", ignore_index=VOID)(predicted, mask)
    counts = sum(confusion(predicted[part], mask[part], 5) for part in (slice(0, 1), slice(1, 4)))  # batches add up
    assert iou(counts).mean == pytest.approx(float(theirs))
    each = MulticlassJaccardIndex(5, average="none", ignore_index=VOID)(predicted, mask).double()
    torch.testing.assert_close(iou(counts).classes.nan_to_num(0), each, rtol=1e-6, atol=1e-6)


def test_iou_by_hand():
    mask = torch.tensor([[[0, 0, 0], [1, 1, VOID]]])
    predicted = torch.tensor([[[0, 0, 1], [1, 3, 2]]])
    counts = confusion(predicted, mask, 5)
    assert counts.tolist() == [[2, 1, 0, 0, 0], [0, 1, 0, 1, 0], *[[0] * 5] * 3]
    found = iou(counts)
    # class 0: 2 of 3; class 1: 1 of 1 + 1 + 1; class 3 is never true; 2 (under void) and 4 do not occur
    assert found.classes[[0, 1, 3]].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert found.classes[[2, 4]].isnan().all()
    assert found.mean == pytest.approx(1 / 3)
    assert found.pixels == pytest.approx(3 / 5)


def test_labels_of_regions_by_hand():
    mask = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, VOID], [VOID, VOID, 2, 1], [VOID, VOID, 1, 2]]])
    shares = region_labels(mask, (2, 2), 3)
    assert shares.tolist() == [[[0.75, 0, 0.25], [0, 1, 0], [0, 0, 0], [0, 0.5, 0.5]]]
    assert majority(shares).tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0]]]  # of equal ones the lowest


def test_a_pixel_belongs_to_the_region_that_holds_its_middle():
    """Five columns over two regions: the middle of the third lies on the border, and belongs to the right one."""
    shares = region_labels(torch.tensor([[[0, 1, 2, 3, 4]]]), (1, 2), 5)
    assert shares[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 2], [1, 3], [1, 4]]


def test_votes_of_single_labels_are_weighted_knn():
    bank, query, labels = torch.randn(50, 6), torch.randn(20, 6), torch.randint(0, 4, (50,))
    votes = neighbour_votes(bank, torch.eye(4)[labels], query, k=9, temperature=0.07, chunk=7)
    ranked = knn_predict(bank, labels, query, k=9, temperature=0.07, num_classes=4)
    assert torch.equal(votes.argmax(1), ranked[:, 0])
    torch.testing.assert_close(votes.sum(1), torch.ones(20))


def test_votes_of_shares_by_hand():
    bank, labels = (
        torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
    )
    votes = neighbour_votes(bank, labels, torch.tensor([[3.0, 0.0]]), k=2, temperature=0.5)  # cosines 1 and 0
    first = math.exp(2) / (math.exp(2) + 1)
    assert votes[0].tolist() == pytest.approx([first + (1 - first) / 2, (1 - first) / 2])


def test_scores_are_bilinear_between_the_middles_of_regions():
    scores = torch.tensor([[[[0.0, 1.0]]]])
    assert upsampled(scores, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]


def test_a_place_between_two_regions_is_found_there():
    """Three regions in a row; the source's feature lies half way between those of the second and the third."""
    source, target = torch.tensor([[0.0, 1.0, 1.0]]), torch.eye(3)
    (found,) = match_places(source, (1, 1), target, (1, 3), torch.tensor([[0.5, 0.5]]), steps=4)
    assert found.tolist() == pytest.approx([2 / 3, 0.5])
    (coarse,) = match_places(source, (1, 1), target, (1, 3), torch.tensor([[0.5, 0.5]]), steps=0)
    assert coarse.tolist() == pytest.approx([0.5, 0.5])


def test_the_same_map_finds_every_place_itself():
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    regions = torch.stack([rows, columns, torch.full_like(rows, 3.0)], -1).flatten(0, 1)  # another direction everywhere
    places = torch.tensor([[0.5 / 7, 0.5 / 5], [3.5 / 7, 2.5 / 5], [4.0 / 7, 3.0 / 5]])
    found = match_places(regions, (5, 7), regions, (5, 7), places, steps=2)
    torch.testing.assert_close(found, places)


def test_a_keypoint_is_right_within_a_tenth_of_the_longer_side_of_the_box():
    box, truth = torch.tensor([5.0, 5.0, 25.0, 105.0]), torch.tensor([[50.0, 50.0]] * 3)  # 20 wide, 100 high
    found = truth + torch.tensor([[10.0, 0.0], [6.0, 8.0], [6.0, 8.01]])
    assert correct_keypoints(found, truth, box).tolist() == [True, True, False]
    assert correct_keypoints(found, truth, box, alpha=0.05).tolist() == [False, False, False]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda: confusion(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), 2),
            r"shape of its mask, \(1, 2, 3\), got \(1, 2, 2",
        ),
        (
            lambda: confusion(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 7), 5),
            "classes from 0 to 4, or 255 for void, got 7",
        ),
        (lambda: region_labels(torch.full((1, 1, 1), 7), (1, 1), 5), "classes from 0 to 4, or 255 for void, got 7"),
        (lambda: iou(torch.zeros(3, 3)), "one pixel or more whose class is known, got none"),
        (lambda: neighbour_votes(torch.eye(2), torch.eye(2), torch.eye(2), k=3, temperature=1.0), "holds 2 regions"),
        (
            lambda: neighbour_votes(torch.eye(2), torch.eye(3), torch.eye(2), k=1, temperature=1.0),
            r"got \(2, 2\), \(3, 3\)",
        ),
        (
            lambda: neighbour_votes(torch.eye(2), torch.eye(2), torch.eye(2), k=1, temperature=0.0),
            "temperature above 0",
        ),
    ],
)
def test_what_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
