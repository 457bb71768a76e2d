"""A backbone with an objective's heads, run on the views of many sizes of a batch."""

# v views | b images | n regions | d, c channels

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esvit_pl.backbones.interface import Backbone, Features
from esvit_pl.objectives.interface import Views

Masks = Sequence[Tensor | None]


class MultiCropNetwork(nn.Module):
    """The student or the teacher.

    The backbone runs once for each run of views of equal size, or, with batch norm and "per_view", once for each view.

    Args:
        backbone: gives `Features`.
        heads: name -> head. What a head may be: `objectives.Objective.heads`.
        head_rows: "joint" runs a head once on the rows of all views, "per_view" once for each view.

    Raises:
        ValueError: a head reads something that there is not.

    >>> from esvit_pl.backbones import build
    >>> swin = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    >>> network = MultiCropNetwork(swin, nn.ModuleDict({"view": nn.Linear(16, 4)}))
    >>> seen = network([torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 16, 16)])
    >>> [tuple(z.shape) for z in seen.z["view"]], seen.grids
    ([(2, 4), (2, 4)], [(4, 4), (2, 2)])
    """

    def __init__(
        self, backbone: Backbone, heads: nn.ModuleDict, *, head_rows: Literal["joint", "per_view"] = "joint"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.head_rows = head_rows
        normed = any(isinstance(module, _BatchNorm) for module in backbone.modules())
        self.views_apart = head_rows == "per_view" and normed
        known = ["pooled", "regions"]
        for name, head in heads.items():
            if reads(head) not in known:
                raise ValueError(
                    f"the head {name!r} reads {reads(head)!r}; it can read {', '.join(known)} (an earlier head by its "
                    "name): set its attribute `reads`"
                )
            known.append(name)

    def forward(self, views: Sequence[Tensor], heads: set[str] | None = None, masks: Masks | None = None) -> Views:
        """
        Args:
            views: (b c h w) each, global ones first.
            heads: names of the heads to run; None runs all.
            masks: for each view (b h w) bool on the grid of its regions, or None.
        """
        features = self.see(views, masks)
        seen = Views(
            pooled=[feature.pooled for feature in features],
            regions=[feature.regions for feature in features],
            grids=[feature.grid for feature in features],
        )
        for name, head in self.heads.items():
            if heads is None or name in heads:
                inputs = {"pooled": seen.pooled, "regions": seen.regions, **seen.z}[reads(head)]
                seen.z[name] = self.run_head(head, inputs)
                if (prototypes := getattr(head, "prototypes", None)) is not None:
                    seen.prototypes[name] = prototypes()
        return seen

    def see(self, views: Sequence[Tensor], masks: Masks | None = None) -> list[Features]:
        """Backbone features of each view; views of equal size that follow one another share a pass."""
        features: list[Features] = []
        for _, run in groupby(range(len(views)), key=lambda v: (views[v].shape, v if self.views_apart else None)):
            same_size = list(run)
            images = torch.cat([views[v] for v in same_size])
            mask = joined([masks[v] for v in same_size]) if masks else None
            # A foreign backbone may know nothing of masks, so it hears of none where there is none.
            pooled, regions, grid = self.backbone(images) if mask is None else self.backbone(images, mask)
            count = len(same_size)
            features += [Features(p, r, grid) for p, r in zip(pooled.chunk(count), regions.chunk(count), strict=True)]
        return features

    def run_head(self, head: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        """(b ... in) of each view -> (b ... out) of each view."""
        rows = [view.flatten(0, -2) for view in inputs]
        if self.head_rows == "per_view":
            outputs = [head(view) for view in rows]
        else:
            outputs = list(head(torch.cat(rows)).split([len(view) for view in rows]))
        return [out.unflatten(0, view.shape[:-1]) for out, view in zip(outputs, inputs, strict=True)]


def reads(head: nn.Module) -> str:
    """What a head is fed; "pooled" where it does not say."""
    return str(getattr(head, "reads", "pooled"))


def joined(masks: list[Tensor | None]) -> Tensor | None:
    """The masks of views of one size, one after the other; a view without a mask hides nothing. None without any."""
    there = [mask for mask in masks if mask is not None]
    if not there:
        return None
    return torch.cat([torch.zeros_like(there[0]) if mask is None else mask for mask in masks])
