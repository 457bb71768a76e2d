"""MoCo v3 (arXiv 2104.02057): a predictor, a momentum teacher, and the other images of the batch as negatives."""

from __future__ import annotations

import math

from torch import nn

from esvit_pl.augment.batch import Batch
from esvit_pl.backbones.interface import Backbone
from esvit_pl.distributed import gather_over_ranks, own_rows
from esvit_pl.heads import MLPHead
from esvit_pl.losses import BatchContrast
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, check_positive
from esvit_pl.specs import spec_of


class MoCoV3Objective(Objective):
    """The student's prediction of one view must find the teacher's key of another among those of the whole batch.

    Args:
        temp: temperature; 0.2 for ViT, 1.0 for ResNet-50.
        hidden_dim: width of the heads' hidden layers.
        out_dim: width of projections and predictions.
        projector_layers: Linear layers of the projector; 3 for ViT, 2 for ResNet-50.
        predictor_norm: batch norm at the end of the predictor; off for ResNet-50.
        freeze_embedding: what embeds the patches stays as it was drawn, and a ViT's positions are fixed sines and
            cosines. For Swin nobody has published it; there it is the convolution, and not the norm behind it. It says
            nothing to a convnet.

    >>> objective = MoCoV3Objective(hidden_dim=8, out_dim=4)
    >>> {name: head.reads for name, head in objective.heads(width=16, region_width=16).items()}
    {'projection': 'pooled'}
    """

    head_rows = "per_view"
    momentum_of_next_step = True

    def __init__(
        self,
        *,
        temp: float = 0.2,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        projector_layers: int = 3,
        predictor_norm: bool = True,
        freeze_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.spec = spec_of("mocov3", locals())
        check_positive(self, "temp", "hidden_dim", "out_dim", "projector_layers")
        self.loss = BatchContrast(temp)

    def prepare(self, backbone: Backbone) -> None:
        if self.spec["freeze_embedding"]:
            backbone.freeze_embedding()

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        hidden = [self.spec["hidden_dim"]] * (self.spec["projector_layers"] - 1)
        widths = [width, *hidden, self.spec["out_dim"]]
        return nn.ModuleDict({"projection": MLPHead(widths, bias=False, last_bias=False, last_norm="plain")})

    def student_only_heads(self) -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "prediction": MLPHead(
                    [self.spec["out_dim"], self.spec["hidden_dim"], self.spec["out_dim"]],
                    reads="projection",
                    bias=False,
                    last_bias=False,
                    last_norm="plain" if self.spec["predictor_norm"] else None,
                )
            }
        )

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        predictions = student.z["prediction"]
        keys = [gather_over_ranks(view) for view in teacher.z["projection"]]
        own = own_rows(len(predictions[0]), device=keys[0].device)
        loss = self.loss(predictions, keys, own)
        chance = 4 * self.spec["temp"] * math.log(max(len(keys[0]), 2))
        return Losses({"contrast": loss}, {"contrast": 1.0}, {"contrast_chance_share": loss.detach() / chance})
