"""BYOL (arXiv 2006.07733): the student predicts the teacher's projection of another view; no negatives."""

from __future__ import annotations

from torch import nn

from esvit_pl.augment.batch import Batch
from esvit_pl.heads import MLPHead
from esvit_pl.losses import PredictionLoss
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, check_positive
from esvit_pl.specs import spec_of


class BYOLObjective(Objective):
    """The student's prediction of one view must point where the teacher's projection of another points.

    The teacher needs a low momentum at the start of short trainings: 0.97 for 40 epochs, 0.99 for 100 and 300, 0.996
    for 1000 (``module.momentum``).

    Args:
        hidden_dim: width of the heads' hidden layers.
        out_dim: width of projections and predictions.

    >>> objective = BYOLObjective(hidden_dim=8, out_dim=4)
    >>> {name: head.reads for name, head in objective.student_only_heads().items()}
    {'prediction': 'projection'}
    """

    head_rows = "per_view"

    def __init__(self, *, hidden_dim: int = 4096, out_dim: int = 256) -> None:
        super().__init__()
        self.spec = spec_of("byol", locals())
        check_positive(self, "hidden_dim", "out_dim")
        self.loss = PredictionLoss()

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        widths = [width, self.spec["hidden_dim"], self.spec["out_dim"]]
        return nn.ModuleDict({"projection": MLPHead(widths, last_bias=False)})

    def student_only_heads(self) -> nn.ModuleDict:
        out, hidden = self.spec["out_dim"], self.spec["hidden_dim"]
        return nn.ModuleDict({"prediction": MLPHead([out, hidden, out], reads="projection", last_bias=False)})

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        loss = self.loss(student.z["prediction"], teacher.z["projection"])
        return Losses({"prediction": loss}, {"prediction": 1.0}, {"prediction_chance_share": loss.detach() / 4})
