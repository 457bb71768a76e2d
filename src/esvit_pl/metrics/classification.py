"""How right answers to a classification are, as the data sets of the transfer suites count it.

All are computed in float64, so that they equal the published definitions to the last digits.
"""

# n images | c classes

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def mean_per_class_accuracy(predictions: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur in `labels` of the share of their images that is right.

    >>> mean_per_class_accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 2])).item()  # 3 of 3, 0 of 1
    0.5

    Args:
        predictions: (n,) classes.
        labels: (n,) classes, 0 and up.

    Returns:
        Scalar in 0-1, float64; nan without images.
    """
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"needs a prediction for each label, got {tuple(predictions.shape)} and {tuple(labels.shape)}")
    images = labels.bincount()
    right = labels[predictions == labels].bincount(minlength=len(images))
    occur = images > 0
    return (right[occur].double() / images[occur]).mean()


@torch.no_grad()
def average_precision(scores: Tensor, labels: Tensor, *, eleven_points: bool = False) -> Tensor:
    """Average precision of each class: images are ranked by its score, and those with equal scores come together.

    All points: the sum over ranks of precision times the growth of recall. Eleven points (PASCAL VOC 2007): the mean
    over the recalls 0, 0.1, ..., 1 of the best precision at that recall or above.

    >>> scores, labels = torch.tensor([[0.9], [0.8], [0.7], [0.6]]), torch.tensor([[1], [0], [1], [0]])
    >>> [round(average_precision(scores, labels, eleven_points=how).item(), 4) for how in (False, True)]
    [0.8333, 0.8485]

    Args:
        scores: (n c), of any scale.
        labels: (n c), 1 where the class is in the image, else 0; -1 where nobody knows, which leaves the image out.

    Returns:
        (c,) in 0-1, float64; nan for a class that is in no image.
    """
    found = []
    for score, label in _classes(scores, labels):
        right, shown = _at_each_score(score, label)
        total, precision = label.sum(), right.double() / shown
        if not len(right) or total == 0:
            found.append(precision.new_full((), torch.nan))
        elif eleven_points:
            # In whole numbers: 3 of 10 is a recall of 0.3, which 3 * 0.1 exceeds.
            reached = 10 * right >= total * torch.arange(11, device=right.device)[:, None]
            found.append(torch.where(reached, precision, 0.0).amax(1).mean())
        else:
            growth = right.diff(prepend=right.new_zeros(1))
            found.append((precision * growth).sum() / total)
    return torch.stack(found)


@torch.no_grad()
def roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve of each class: of all pairs of an image with the class and one without, the share in
    which the first has the higher score; equal scores count half.

    >>> roc_auc(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[1], [0], [1]])).tolist()  # one of two pairs
    [0.5]

    Args:
        scores, labels: as in `average_precision`.

    Returns:
        (c,) in 0-1, float64; nan for a class that is in no image or in all.
    """
    found = []
    for score, label in _classes(scores, labels):
        right, shown = _at_each_score(score, label)
        wrong = shown - right
        steps = wrong.diff(prepend=wrong.new_zeros(1))
        before = torch.cat([right.new_zeros(1), right[:-1]])
        found.append((steps * (before + right)).sum().double() / (2 * label.sum() * (1 - label).sum()))
    return torch.stack(found)


def _classes(scores: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Scores and labels of each class, of the images of which the label is known."""
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"scores and labels must be (n, c), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    if not set(labels.unique().tolist()) <= {-1, 0, 1}:
        raise ValueError(f"labels must be 1, 0 or -1 (unknown), got {labels.unique().tolist()}")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite")
    known = [label >= 0 for label in labels.T]
    return [(score[which], label[which].long()) for score, label, which in zip(scores.T, labels.T, known, strict=True)]


def _at_each_score(score: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """For each different score, highest first: images with the class among those that have it or more, and all such."""
    order = score.argsort(descending=True, stable=True)
    score, right = score[order], label[order].cumsum(0)
    last = torch.cat([score[1:] != score[:-1], score.new_ones(min(len(score), 1), dtype=torch.bool)])
    return right[last], torch.arange(1, len(score) + 1, device=score.device)[last]
