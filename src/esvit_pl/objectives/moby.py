"""MoBY (arXiv 2105.04553): BYOL's networks, MoCo's queue of keys; made for Swin."""

from __future__ import annotations

import math

import torch
from torch import nn

from esvit_pl.augment.batch import Batch
from esvit_pl.heads import MLPHead
from esvit_pl.losses import KeyQueue, QueueContrast, pairs
from esvit_pl.losses.contrast import units
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window, check_positive
from esvit_pl.specs import spec_of


class MoBYObjective(Objective):
    """The student's prediction of one view must be nearer to the teacher's key of another than a queue of keys is.

    There is one queue for each global view, so that negatives were made by the same augmentation as the positive.

    Args:
        temp: temperature.
        queue_length: keys in each queue; a multiple of the global batch.
        hidden_dim: width of the heads' hidden layers.
        out_dim: width of projections and predictions.

    >>> objective = MoBYObjective(queue_length=16, hidden_dim=8, out_dim=4)
    >>> tuple(objective.queue.keys.shape)
    (2, 16, 4)
    """

    head_rows = "per_view"
    momentum_of_next_step = True

    def __init__(
        self, *, temp: float = 0.2, queue_length: int = 4096, hidden_dim: int = 4096, out_dim: int = 256
    ) -> None:
        super().__init__()
        self.spec = spec_of("moby", locals())
        check_positive(self, "temp", "queue_length", "hidden_dim", "out_dim")
        self.loss, self.queue = QueueContrast(temp), KeyQueue(queue_length, out_dim, number=2)

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        return nn.ModuleDict({"projection": MLPHead([width, self.spec["hidden_dim"], self.spec["out_dim"]])})

    def student_only_heads(self) -> nn.ModuleDict:
        out, hidden = self.spec["out_dim"], self.spec["hidden_dim"]
        return nn.ModuleDict({"prediction": MLPHead([out, hidden, out], reads="projection")})

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        predictions, keys = student.z["prediction"], units(teacher.z["projection"])
        losses = [self.loss(predictions[s], keys[t], self.queue.keys[t]) for t, s in pairs(len(keys), len(predictions))]
        if self.training:
            self.queue.observe(torch.stack(keys))
        loss = 2 * torch.stack(losses).mean()  # with two views the sum of both directions, as released
        chance = 2 * math.log(1 + self.spec["queue_length"])
        return Losses({"contrast": loss}, {"contrast": 1.0}, {"contrast_chance_share": loss.detach() / chance})

    def collect(self) -> Window:
        return Window(gather={"keys": self.queue.window()})

    def commit(self, window: Window) -> None:
        self.queue.commit(window.gather["keys"])

    def reset(self) -> None:
        self.queue.reset()
