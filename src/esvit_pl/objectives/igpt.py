"""iGPT (Chen et al., ICML 2020): the student says the next colour of a raster; no teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.backbones.igpt import IGPT
from esvit_pl.backbones.interface import Backbone
from esvit_pl.losses.next_token import next_token_loss
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views


class IGPTObjective(Objective):
    """The student says each pixel's colour from the pixels before it. Raster and colours are the backbone's.

    Raises:
        ValueError: a backbone that sees what it would have to predict.

    >>> objective = IGPTObjective()
    >>> objective.prepare(IGPT(width=8, depth=2, num_heads=2, side=4))
    >>> objective.heads(width=8, region_width=8)["color"]
    Linear(in_features=8, out_features=512, bias=False)
    """

    uses_teacher = False

    def __init__(self) -> None:
        super().__init__()
        self.spec = {"name": "igpt"}

    def prepare(self, backbone: Backbone) -> None:
        if not isinstance(backbone, IGPT):
            raise ValueError(
                f"IGPTObjective predicts pixels that the backbone has not seen yet, and {type(backbone).__name__} sees "
                "all at once; choose backbone=igpt_small or igpt_embedded, or another loss"
            )
        self.raster, self.num_colors = backbone.rasterizer(), backbone.num_colors

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        color = nn.Linear(region_width, self.num_colors, bias=False)
        nn.init.zeros_(color.weight)  # all colours alike
        color.reads = "regions"  # type: ignore[assignment]
        return nn.ModuleDict({"color": color})

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        losses = [
            next_token_loss(said, self.raster(view))
            for view, said in zip(batch["views"], student.z["color"], strict=True)
        ]
        loss: Tensor = torch.stack(losses).mean()
        return Losses(
            {"color": loss}, {"color": 1.0}, {"color_chance_share": loss.detach() / math.log(self.num_colors)}
        )
