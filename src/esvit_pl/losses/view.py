"""The view-level loss of DINO and EsViT."""

# s, t student and teacher views | b images | p projection width

from __future__ import annotations

import torch
from torch import Tensor, nn

from esvit_pl.losses.contrast import pairs


class ViewLoss(nn.Module):
    """For every teacher view t, student view s != t and image b:
           loss += cross_entropy(softmax(W z[s][b] / temp), teacher's distribution at (t, b))     then the mean.

    L_V of the paper, in the form of `losses.prototypes`.

    >>> prototypes = torch.randn(8, 4)
    >>> z = [torch.nn.functional.normalize(torch.randn(2, 4), dim=-1) for _ in range(3)]  # 2 global views, 1 local
    >>> partitions = [(x @ prototypes.T / 0.1).logsumexp(-1) for x in z]
    >>> target = [x.softmax(-1) @ prototypes for x in (torch.randn(2, 8), torch.randn(2, 8))]
    >>> ViewLoss()(z, partitions, target).shape
    torch.Size([])
    """

    def __init__(self, temp: float = 0.1) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, z: list[Tensor], log_partition: list[Tensor], target: list[Tensor]) -> Tensor:
        """
        Args:
            z: (b p) student projections of each view, the teacher's views first.
            log_partition: (b,) log partitions of each student view.
            target: (b p) expected prototypes of each teacher view.

        Returns:
            Scalar, in nats.
        """
        if len(z) < 2 or not target:
            raise ValueError(
                f"ViewLoss needs two views or more, got {len(target)} teacher and {len(z)} student views; "
                "raise augment.num_global or augment.num_local"
            )
        losses = [
            (log_partition[s] - (z[s] * target[t]).sum(-1) / self.temp).mean() for t, s in pairs(len(target), len(z))
        ]
        return torch.stack(losses).mean()
