"""DenseCL (arXiv 2011.09157): MoCo v2 for images and, in equal parts, for their regions."""

from __future__ import annotations

import math

import torch
from torch import nn

from esvit_pl.augment.batch import Batch
from esvit_pl.heads import MLPHead
from esvit_pl.losses import KeyQueue, QueueContrast, match_regions
from esvit_pl.losses.contrast import units
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window, check_positive, check_two_views
from esvit_pl.precision import wide
from esvit_pl.specs import spec_of


class DenseCLObjective(Objective):
    """(1 - dense_weight) * the contrast of images + dense_weight * the contrast of regions.

    View 0 asks, view 1 has the keys; not the other way round. A region's partner is the region of the other view with
    the most similar backbone feature, as in EsViT's region loss. Negatives come from two queues: of earlier images'
    keys, and of the means over their regions' keys.

    The authors shuffle the keys' images over processes, so that batch norm of the backbone tells nothing about the
    partner. This does not, and a backbone without batch norm (Swin, ViT) needs none of it.

    Args:
        dense_weight: share of the regions in the loss.
        temp: temperature.
        queue_length: keys in each queue; a multiple of the global batch.
        hidden_dim: width of the heads' hidden layers.
        out_dim: width of the projections.

    >>> objective = DenseCLObjective(queue_length=16, hidden_dim=8, out_dim=4)
    >>> {name: head.reads for name, head in objective.heads(width=16, region_width=16).items()}
    {'image': 'pooled', 'region': 'regions'}
    """

    momentum_of_next_step = True
    two_views = True

    def __init__(
        self,
        *,
        dense_weight: float = 0.5,
        temp: float = 0.2,
        queue_length: int = 65536,
        hidden_dim: int = 2048,
        out_dim: int = 128,
    ) -> None:
        super().__init__()
        self.spec = spec_of("densecl", locals())
        check_positive(self, "temp", "queue_length", "hidden_dim", "out_dim")
        if not 0 <= dense_weight <= 1:
            raise ValueError(f"DenseCLObjective needs dense_weight between 0 and 1, got {dense_weight}")
        self.loss, self.queue = QueueContrast(temp), KeyQueue(queue_length, out_dim, number=2)

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        rest = [self.spec["hidden_dim"], self.spec["out_dim"]]
        return nn.ModuleDict(
            {
                "image": MLPHead([width, *rest], batch_norm=False),
                "region": MLPHead([region_width, *rest], reads="regions", batch_norm=False),
            }
        )

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        check_two_views(self, student.pooled)
        of_images, of_regions = self.queue.keys
        image = self.loss(student.z["image"][0], teacher.z["image"][1], of_images)
        match = match_regions(student.regions[0], teacher.regions[1])  # (b n)
        partners = torch.take_along_dim(teacher.z["region"][1], match[..., None], dim=1)  # (b n p)
        region = self.loss(student.z["region"][0], partners, of_regions)
        if self.training:
            keys = [teacher.z["image"][1], wide(teacher.z["region"][1]).mean(1)]
            self.queue.observe(torch.stack(units(keys)))
        weight, chance = self.spec["dense_weight"], math.log(1 + self.spec["queue_length"])
        return Losses(
            {"contrast": image, "dense": region},
            {"contrast": 1 - weight, "dense": weight},
            {"contrast_chance_share": image.detach() / chance, "dense_chance_share": region.detach() / chance},
        )

    def collect(self) -> Window:
        return Window(gather={"keys": self.queue.window()})

    def commit(self, window: Window) -> None:
        self.queue.commit(window.gather["keys"])

    def reset(self) -> None:
        self.queue.reset()
