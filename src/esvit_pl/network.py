"""A backbone with an objective's heads, run on the views of many sizes of a batch."""

# v views | b images | n regions | d, c channels | p projection width

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone, Features
from esvit_pl.heads import ProjectionHead
from esvit_pl.objectives.interface import Views


class MultiCropNetwork(nn.Module):
    """The student or the teacher.

    The backbone runs once for each run of views of equal size, every head once on the rows of all views.

    Args:
        backbone: gives `Features`.
        heads: name -> head; a head's ``reads`` says what it is fed, its ``prototypes`` (or None) are handed on.
    """

    def __init__(self, backbone: Backbone, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads

    def forward(self, views: list[Tensor], heads: set[str] | None = None) -> Views:
        """
        Args:
            views: (b c h w) each, global ones first.
            heads: names of the heads to run; None runs all.
        """
        features = self.see(views)
        seen = Views(
            pooled=[feature.pooled for feature in features],
            regions=[feature.regions for feature in features],
            grids=[feature.grid for feature in features],
        )
        for name, head in self.heads.items():
            if heads is not None and name not in heads:
                continue
            assert isinstance(head, ProjectionHead)
            inputs = {"pooled": seen.pooled, "regions": seen.regions, **seen.z}[head.reads]
            z = head(torch.cat([rows.flatten(0, -2) for rows in inputs]))
            counts = [rows.shape[:-1].numel() for rows in inputs]
            seen.z[name] = [
                part.unflatten(0, rows.shape[:-1]) for part, rows in zip(z.split(counts), inputs, strict=True)
            ]
            if head.prototypes is not None:
                seen.prototypes[name] = head.prototypes()
        return seen

    def see(self, views: list[Tensor]) -> list[Features]:
        """Backbone features of each view; views of equal size that follow one another share a pass."""
        features: list[Features] = []
        for _, run in groupby(views, key=lambda view: view.shape):
            same_size = list(run)
            pooled, regions, grid = self.backbone(torch.cat(same_size))
            count = len(same_size)
            features += [Features(p, r, grid) for p, r in zip(pooled.chunk(count), regions.chunk(count), strict=True)]
        return features
