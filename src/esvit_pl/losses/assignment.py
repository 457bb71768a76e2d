"""SwAV's loss: assignments to prototypes, equally many for each, which other views must predict."""

# v views, c those that make codes | b images | r rows of this process, queue included | k prototypes

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.distributed import num_ranks, sum_over_ranks
from esvit_pl.losses.contrast import pairs
from esvit_pl.precision import wide


@torch.no_grad()
def assign(scores: Tensor, *, sharpness: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft assignments of rows to prototypes, so that all prototypes together get equally much (Sinkhorn-Knopp).

    Ranks exchange one sum in each iteration; every rank must call it with equally many rows.

    Args:
        scores: (... r k) cosines of rows and prototypes.
        sharpness: epsilon of the method: scores are divided by it.
        iterations: how often prototypes and rows are brought to their sums in turn.

    Returns:
        (... r k); each row sums to 1.

    >>> assign(torch.eye(2)).round(decimals=3)
    tensor([[1., 0.],
            [0., 1.]])
    """
    q = (wide(scores) / sharpness).exp()
    rows = scores.shape[-2] * num_ranks()
    for _ in range(iterations):
        q = q / sum_over_ranks(q.sum(-2, keepdim=True)) / scores.shape[-1]  # each prototype gets 1 / k
        q = q / q.sum(-1, keepdim=True) / rows
    return q * rows


class AssignmentLoss(nn.Module):
    """For each view c that makes codes, each other view v and each image:
           loss += cross_entropy(softmax(scores[v] / temp), codes[c])     then the mean.

    SwAV, arXiv 2006.09882. ln k is what untrained and collapsed networks have.

    >>> round(float(AssignmentLoss()([torch.zeros(2, 8)] * 3, [torch.full((2, 8), 1 / 8)] * 2)), 4)  # ln 8
    2.0794
    """

    def __init__(self, temp: float = 0.1) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, scores: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        """
        Args:
            scores: (b k) of every view.
            codes: (b k) of the first views.
        """
        with torch.autocast(scores[0].device.type, enabled=False):
            said = [F.log_softmax(wide(view) / self.temp, dim=-1) for view in scores]
            losses = [-(codes[code] * said[view]).sum(-1).mean() for code, view in pairs(len(codes), len(said))]
            return torch.stack(losses).mean()
