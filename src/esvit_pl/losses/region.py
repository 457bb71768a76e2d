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
    """

    def __init__(self, temp: float = 0.1) -> None:
        super().__init__()
        self.temp = temp

    def forward(
        self,
        z: list[Tensor],
        log_partition: list[Tensor],
        target: list[Tensor],
        matches: dict[tuple[int, int], Tensor],
    ) -> Tensor:
        """
        Args:
            z: (b n p) student projections of each view.
            log_partition: (b n) of each student view.
            target: (b m p) expected prototypes of each teacher view.
            matches: {(t, s): (b n)} of `match_views`.

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
