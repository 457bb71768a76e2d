"""How right answers to a classification are, as the data sets of the transfer suites count it.

All are computed in float64, so that they equal the published definitions to the last digits.
"""

# n images | c classes

from __future__ import annotations

from collections.abc import Callable

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


def _map11(scores: Tensor, labels: Tensor) -> Tensor:
    return average_precision(scores, labels, eleven_points=True).nanmean()


def _roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    return roc_auc(scores[:, 1:], labels[:, None])[0]


COUNTED_BY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top1": lambda scores, labels: (scores.argmax(1) == labels).double().mean(),
    "per_class": lambda scores, labels: mean_per_class_accuracy(scores.argmax(1), labels),
    "roc_auc": _roc_auc,
    "map11": _map11,
}
"""How a data set counts: accuracy, its mean over classes, area under the ROC curve of the second of two classes, mean
of the classes' 11-point average precision. Each takes scores (n c) and labels, and gives a scalar in 0-1."""


def measure(metric: str, scores: Tensor, labels: Tensor) -> float:
    """One of `COUNTED_BY` over all images whose label is known.

    >>> scores, labels = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]), torch.tensor([0, 0, 1])
    >>> round(measure("top1", scores, labels), 4), measure("per_class", scores, labels)
    (0.6667, 0.75)

    Args:
        metric: "top1", "per_class", "roc_auc" or "map11".
        scores: (n c).
        labels: (n,) classes, -1 where nobody knows; for map11 (n c), as in `average_precision`.

    Raises:
        ValueError: there is no such metric; it needs other labels or another number of classes; no label is known.
    """
    if metric not in COUNTED_BY:
        raise ValueError(f"metric must be one of {', '.join(COUNTED_BY)}, got {metric}")
    several = metric == "map11"
    if labels.ndim != 1 + several:
        wanted = "memberships of each image in all classes" if several else "one class for each image"
        raise ValueError(f"metric={metric} needs {wanted}, got labels of shape {tuple(labels.shape)}")
    if metric == "roc_auc" and scores.shape[1] != 2:
        raise ValueError(f"metric=roc_auc needs two classes, got {scores.shape[1]}")
    known = (labels >= 0).view(len(labels), -1).any(1)
    if not known.any():
        raise ValueError("an accuracy needs one image or more with a label, got none")
    return float(COUNTED_BY[metric](scores[known], labels[known]))


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
