"""The region-level loss of EsViT."""

# s, t student and teacher views | b images | n, m their regions | p projection width

from __future__ import annotations

import torch
from torch import Tensor, nn


class RegionLoss(nn.Module):
    """For every teacher view t, student view s != t, image b and student region n:
           m = argmax_m cos(student_features[s][b, n], teacher_features[t][b, m])       (losses.matching)
           loss += cross_entropy(softmax(W z[s][b, n] / temp), teacher's distribution at (t, b, m))     then the mean.

    L_R of the paper, in the form of `losses.prototypes`.

    >>> prototypes, features = torch.randn(8, 4), [torch.randn(2, 9, 16) for _ in range(3)]  # 2 global views, 1 local
    >>> z = [torch.nn.functional.normalize(torch.randn(2, 9, 4), dim=-1) for _ in range(3)]
    >>> partitions = [(x @ prototypes.T / 0.1).logsumexp(-1) for x in z]
    >>> target = [x.softmax(-1) @ prototypes for x in (torch.randn(2, 9, 8), torch.randn(2, 9, 8))]
    >>> from esvit_pl.losses import match_views
    >>> RegionLoss()(z, partitions, target, match_views(features, features[:2])).shape
    torch.Size([])
    """

    def __init__(self, temp: float = 0.1) -> None:
        super().__init__()
        self.temp = temp

    def forward(
        self, z: list[Tensor], log_partition: list[Tensor], target: list[Tensor], matches: dict[tuple[int, int], Tensor]
    ) -> Tensor:
        """
        Args:
            z: (b n p) student projections of each view.
            log_partition: (b n) log partitions of each student view.
            target: (b m p) expected prototypes of each teacher view.
            matches: {(t, s): (b n)}, the result of `match_views`.

        Returns:
            Scalar, in nats: the mean over regions inside a view, then over pairs of views.
        """
        if not matches:
            raise ValueError(
                f"RegionLoss needs two views or more, got {len(target)} teacher and {len(z)} student views; "
                "raise augment.num_global or augment.num_local"
            )
        losses = []
        for (t, s), match in matches.items():
            u = torch.take_along_dim(target[t], match[..., None], dim=1)  # (b n p)
            losses.append((log_partition[s] - (z[s] * u).sum(-1) / self.temp).mean())
        return torch.stack(losses).mean()
