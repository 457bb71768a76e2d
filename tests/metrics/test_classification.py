from __future__ import annotations

import math

import golden_files
import pytest
import torch

from esvit_pl.metrics import average_precision, mean_per_class_accuracy, measure, roc_auc


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("evaluation_multilabel"), ids=lambda path: path.stem)
def test_golden_multilabel(path):
    tensors = golden_files.read(path).tensors
    scores, labels = tensors["scores"], tensors["labels"]
    for found, name in (
        (average_precision(scores, labels, eleven_points=True), "ap_11_point"),
        (average_precision(scores, labels), "average_precision"),
        (roc_auc(scores, labels), "roc_auc"),
    ):
        torch.testing.assert_close(found, tensors[name], rtol=0, atol=1e-9)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("evaluation_per_class"), ids=lambda path: path.stem)
def test_golden_per_class(path):
    tensors = golden_files.read(path).tensors
    found = mean_per_class_accuracy(tensors["predictions"], tensors["labels"])
    assert found.item() == pytest.approx(tensors["mean_per_class"].item(), abs=1e-9)


def test_average_precision_by_hand():
    scores = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]])
    labels = torch.tensor([[1], [0], [1], [0], [0]])
    assert average_precision(scores, labels).item() == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, labels, eleven_points=True).item() == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert roc_auc(scores, labels).item() == pytest.approx(5 / 6)  # of 6 pairs one is the wrong way round


def test_three_of_ten_are_a_recall_of_three_tenths():
    scores = torch.arange(20.0, 0.0, -1)[:, None]
    labels = torch.tensor([1] * 3 + [0] * 10 + [1] * 7)[:, None]
    # Recalls 0 to 0.3 have a precision of 1; above it the best is 10 of 20.
    assert average_precision(scores, labels, eleven_points=True).item() == pytest.approx((4 * 1 + 7 * 0.5) / 11)


def test_images_with_equal_scores_come_together():
    scores, labels = torch.ones(4, 1), torch.tensor([[1], [0], [0], [0]])
    assert average_precision(scores, labels).item() == 0.25
    assert average_precision(scores, labels.flip(0)).item() == 0.25
    assert roc_auc(scores, labels).item() == 0.5


def test_unknown_labels_leave_their_images_out():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    known = average_precision(scores, torch.tensor([[-1, 1], [0, 0], [1, 1]]))
    assert known[0] == average_precision(scores[1:, :1], torch.tensor([[0], [1]]))[0] == 0.5
    assert roc_auc(scores, torch.tensor([[-1, 1], [0, 0], [1, 1]]))[0] == 0


def test_a_class_that_is_in_no_image_has_no_number():
    scores = torch.rand(3, 2)
    labels = torch.tensor([[0, 1], [0, 1], [0, 1]])
    assert [math.isnan(value) for value in average_precision(scores, labels)] == [True, False]
    assert all(math.isnan(value) for value in roc_auc(scores, labels))
    assert math.isnan(mean_per_class_accuracy(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)))


def test_a_class_that_does_not_occur_does_not_count():
    assert mean_per_class_accuracy(torch.tensor([0, 5, 2]), torch.tensor([0, 0, 2])).item() == 0.75


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        (torch.ones(3), torch.ones(3), r"must be \(n, c\), got \(3,\) and \(3,\)"),
        (torch.ones(3, 1), torch.full((3, 1), 2), r"1, 0 or -1 \(unknown\), got \[2\]"),
        (torch.full((3, 1), math.nan), torch.ones(3, 1), "scores must be finite"),
    ],
)
@pytest.mark.parametrize("measure", [average_precision, roc_auc])
def test_bad_input(measure, scores, labels, said):
    with pytest.raises(ValueError, match=said):
        measure(scores, labels)


def test_a_prediction_for_each_label():
    with pytest.raises(ValueError, match="a prediction for each label"):
        mean_per_class_accuracy(torch.zeros(2), torch.zeros(3))


# -- by name, as a data set says it


def test_each_data_set_counts_in_its_own_way():
    scores, labels = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]), torch.tensor([0, 0, 0, 1])
    assert measure("top1", scores, labels) == 0.5
    assert measure("per_class", scores, labels) == pytest.approx((2 / 3 + 0) / 2)
    assert measure("roc_auc", scores, labels) == pytest.approx(2 / 3)  # 0.4 is above 0.1 and 0.2, not above 0.7
    both = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 0]])  # nothing is known of the second class but that it is absent
    assert measure("map11", scores, both) == pytest.approx((6 * 1 + 5 * 2 / 4) / 11)


def test_what_nobody_knows_is_left_out():
    scores, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), torch.tensor([0, -1, 1])
    assert measure("top1", scores, labels) == measure("top1", scores[[0, 2]], labels[[0, 2]]) == 0.5
    both = torch.tensor([[1, -1], [-1, -1], [0, 1]])
    assert measure("map11", scores, both) == (0.5 + 1) / 2  # of the first class both have the same score


@pytest.mark.parametrize(
    ("metric", "labels", "said"),
    [
        ("top2", torch.zeros(2).long(), "metric must be one of top1, per_class, roc_auc, map11, got top2"),
        ("top1", torch.zeros(2, 3).long(), r"metric=top1 needs one class for each image, got labels of shape \(2, 3\)"),
        ("map11", torch.zeros(2).long(), "metric=map11 needs memberships of each image in all classes"),
        ("roc_auc", torch.zeros(2).long(), "metric=roc_auc needs two classes, got 3"),
        ("top1", torch.tensor([-1, -1]), "needs one image or more with a label"),
    ],
)
def test_labels_that_do_not_fit_a_metric(metric, labels, said):
    with pytest.raises(ValueError, match=said):
        measure(metric, torch.rand(2, 3), labels)
