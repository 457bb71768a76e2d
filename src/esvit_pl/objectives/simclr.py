"""SimCLR (arXiv 2002.05709, 2006.10029): two views of an image must find one another in the batch; no teacher."""

from __future__ import annotations

import math

from torch import nn

from esvit_pl.augment.batch import Batch
from esvit_pl.distributed import gather_with_gradient, own_rows
from esvit_pl.heads import MLPHead
from esvit_pl.losses import PairContrast
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, check_positive, check_two_views
from esvit_pl.specs import spec_of


class SimCLRObjective(Objective):
    """Each view must be nearer to the other view of its image than all views of the other images of the batch are.

    Args:
        temp: temperature.
        num_layers: Linear layers of the head, as wide as the backbone's feature; 3 in version 2, 2 in version 1.
        out_dim: width of the projections.

    >>> SimCLRObjective(out_dim=4).heads(width=16, region_width=16)["projection"].mlp[-1].num_features
    4
    """

    uses_teacher = False
    two_views = True

    def __init__(self, *, temp: float = 0.1, num_layers: int = 3, out_dim: int = 128) -> None:
        super().__init__()
        self.spec = spec_of("simclr", locals())
        check_positive(self, "temp", "num_layers", "out_dim")
        self.loss = PairContrast(temp)

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        widths = [width] * self.spec["num_layers"] + [self.spec["out_dim"]]
        return nn.ModuleDict({"projection": MLPHead(widths, bias=False, last_bias=False, last_norm="scaled")})

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        z = check_two_views(self, student.z["projection"])
        everyone = [gather_with_gradient(view) for view in z]
        loss = self.loss(z, everyone, own_rows(len(z[0]), device=z[0].device))
        chance = 2 * math.log(max(2 * len(everyone[0]) - 1, 2))
        return Losses({"contrast": loss}, {"contrast": 1.0}, {"contrast_chance_share": loss.detach() / chance})
