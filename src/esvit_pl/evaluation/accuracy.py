"""From answers to accuracies over all ranks."""

# n images | c classes | a answerers: heads, or numbers of neighbours

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores

from esvit_pl.distributed import sum_over_ranks
from esvit_pl.metrics.knn import TopK


def first_is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """(n c) and (n,) -> (n,) bool: whether the largest is that of the true class."""
    return logits.argmax(1) == labels


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(n c) and (n,) -> numbers of right answers, (2,) float64: the true class is the first, is among the first five.

    Sums, so that batches and ranks can be added up. With fewer than five classes all of them are "the first five".
    """
    if not len(labels):  # torchmetrics cannot count nothing
        return torch.zeros(2, dtype=torch.float64, device=logits.device)
    classes = logits.shape[1]
    hits = [
        multiclass_stat_scores(logits, labels, classes, average="micro", top_k=k, validate_args=False)[0]
        for k in (1, min(5, classes))
    ]
    return torch.stack(hits).double()


def accuracies_over_ranks(right: Tensor, images: int) -> list[TopK]:
    """Accuracies over the images of all ranks, by one all-reduce.

    Args:
        right: (a 2) or (... a 2) float64, this rank's numbers of right answers.
        images: this rank's number of images.
    """
    sums = sum_over_ranks(torch.cat([right.flatten(), right.new_tensor([images])]))
    if sums[-1] == 0:
        raise ValueError("an accuracy needs one query image or more, got none")
    return [TopK(*row) for row in (sums[:-1] / sums[-1]).view(-1, 2).tolist()]
