"""From answers to accuracies over all ranks."""

# n images | c classes | a answerers: heads, or numbers of neighbours

from __future__ import annotations

import torch
from torch import Tensor

from esvit_pl.distributed import sum_over_ranks
from esvit_pl.metrics.knn import TopK


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(n c) and (n,) -> numbers of right answers, (2,) float64: the true class is the first, is among the first five.

    Sums, so that batches and ranks can be added up. With fewer than five classes all of them are "the first five".
    """
    among = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return torch.stack([(logits.argmax(1) == labels).sum(), among.sum()]).double()


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
