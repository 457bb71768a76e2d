"""The loss of BYOL: a prediction must point where the teacher's projection of the other view points."""

# s, t student and teacher views | b images | p projection width

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esvit_pl.losses.contrast import pairs, units


class PredictionLoss(nn.Module):
    """For every teacher view t, student view s != t and image:
           loss += |prediction[s] - target[t]|^2, both of length 1     then twice the mean.

    BYOL, arXiv 2006.07733; with two views the sum of both directions, as released. Between 0 (all equal) and 8 (all
    opposite); 4 at right angles.

    >>> one, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> loss = PredictionLoss()
    >>> [float(loss([one, one], [target, target])) for target in (one, other, -one)]
    [0.0, 4.0, 8.0]
    """

    def forward(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """
        Args:
            predictions: (b p) of each student view, the teacher's views first.
            targets: (b p) of each teacher view.
        """
        p, t = units(predictions), units(targets)
        with torch.autocast(p[0].device.type, enabled=False):
            far = [2 - 2 * (p[student] * t[teacher]).sum(-1).mean() for teacher, student in pairs(len(t), len(p))]
            return 2 * torch.stack(far).mean()
