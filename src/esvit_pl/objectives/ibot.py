"""iBOT (arXiv 2111.07832): DINO on images, and on the regions that are hidden from the student."""

# b images | n regions | p projection width | k prototypes

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.heads import ProjectionHead, Prototypes, Reused
from esvit_pl.losses import Center, ViewLoss
from esvit_pl.losses.masked import mean_of_masked
from esvit_pl.objectives.distributions import distributions
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window, check_positive
from esvit_pl.schedules import Duration, scheduled
from esvit_pl.specs import spec_of


class IBOTObjective(Objective):
    """view_weight * DINO's loss of the views + patch_weight * the same between the regions of one view, at the places
    that the student does not see.

    Args:
        view_weight, patch_weight: weights of the two.
        mask_start_epoch: epoch from which regions are hidden; 50 for Swin as published, 0 for ViT.
        num_prototypes: k.
        shared_head: one head, with its prototypes, for images and regions.
        hidden_dim, out_dim, num_layers, norm_last_layer: of the heads, as in `EsViTObjective`.
        student_temp: temperature of the student's distributions.
        teacher_temp, teacher_temp_start, teacher_temp_warmup_epochs: of the teacher's, as in `EsViTObjective`. For
            regions the warm-up begins with the masks.
        center_momentum: share of the old centre in the new one.

    >>> objective = IBOTObjective(num_prototypes=8, hidden_dim=8, out_dim=4)
    >>> heads = objective.heads(width=16, region_width=16)
    >>> heads["region"].reads, heads["region"].prototypes is heads["view"].prototypes
    ('regions', True)
    """

    uses_masks = True

    def __init__(
        self,
        *,
        view_weight: float = 1.0,
        patch_weight: float = 1.0,
        mask_start_epoch: int = 0,
        num_prototypes: int = 8192,
        shared_head: bool = True,
        hidden_dim: int = 2048,
        out_dim: int = 256,
        num_layers: int = 3,
        norm_last_layer: bool = False,
        student_temp: float = 0.1,
        teacher_temp: float = 0.07,
        teacher_temp_start: float = 0.04,
        teacher_temp_warmup_epochs: int | None = None,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.spec = spec_of("ibot", locals())
        check_positive(
            self,
            "view_weight",
            "patch_weight",
            "num_prototypes",
            "hidden_dim",
            "out_dim",
            "num_layers",
            "student_temp",
            "teacher_temp",
            "teacher_temp_start",
        )
        if not 0 <= center_momentum <= 1:
            raise ValueError(f"IBOTObjective needs center_momentum between 0 and 1, got {center_momentum}")
        if mask_start_epoch < 0:
            raise ValueError(f"IBOTObjective needs mask_start_epoch of 0 or later, got {mask_start_epoch}")
        self.center, self.region_center = (Center(num_prototypes, out_dim, momentum=center_momentum) for _ in "ab")
        self.view_loss = ViewLoss(student_temp)

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        if self.spec["shared_head"]:
            if width != region_width:
                raise ValueError(
                    f"this backbone's feature has {width} channels and its regions {region_width}, so they cannot "
                    "share a head; set loss.shared_head=false"
                )
            head = self.head(width, "pooled")
            return nn.ModuleDict({"view": head, "region": Reused(head, reads="regions")})
        return nn.ModuleDict({"view": self.head(width, "pooled"), "region": self.head(region_width, "regions")})

    def head(self, in_dim: int, reads: str) -> ProjectionHead:
        s = self.spec
        prototypes = Prototypes(s["out_dim"], s["num_prototypes"], fixed_gain=s["norm_last_layer"])
        sizes = {name: s[name] for name in ("hidden_dim", "out_dim", "num_layers")}
        return ProjectionHead(in_dim, reads=reads, prototypes=prototypes, **sizes)

    def student_sees(self, batch: Batch, progress: Progress) -> tuple[Sequence[Tensor], Sequence[Tensor | None] | None]:
        masks = batch["masks"]
        if progress.epoch < self.spec["mask_start_epoch"]:  # masks that hide nothing: the mask vector keeps a gradient
            masks = [mask if mask is None else torch.zeros_like(mask) for mask in masks]
        return batch["views"], masks

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        now, temp = self.schedules(progress), self.spec["student_temp"]
        both = {"student_temp": temp, "observe": self.training}
        seen = distributions("view", student, teacher, self.center, teacher_temp=now["teacher_temp"], **both)
        hidden = distributions(
            "region",
            student,
            teacher,
            self.region_center,
            teacher_temp=now["region_teacher_temp"],
            own_views=False,
            **both,
        )
        _, masks = self.student_sees(batch, progress)
        assert masks is not None
        with torch.autocast(seen.entropy.device.type, enabled=False):
            view = self.view_loss(seen.z, seen.partitions, seen.targets)
            patches = [
                mean_of_masked(partition - (z * u).sum(-1) / temp, mask.flatten(1))
                for z, partition, u, mask in zip(hidden.z, hidden.partitions, hidden.targets, masks, strict=False)
                if mask is not None
            ]
        terms = {"view": view, "patch": torch.stack(patches).mean()}
        weights = {"view": self.spec["view_weight"], "patch": self.spec["patch_weight"]}
        return Losses(terms, weights, {**seen.diagnostics, **hidden.diagnostics})

    def collect(self) -> Window:
        return Window(sum=torch.cat([self.center.window(), self.region_center.window()]))

    def commit(self, window: Window) -> None:
        assert window.sum is not None
        for center, part in zip((self.center, self.region_center), window.sum.chunk(2), strict=True):
            center.commit(part)

    def reset(self) -> None:
        self.center.reset()
        self.region_center.reset()

    def schedules(self, progress: Progress) -> dict[str, float]:
        start = self.spec["mask_start_epoch"]
        return {
            "teacher_temp": self.teacher_temp_at(progress.epoch, progress.epochs),
            "region_teacher_temp": self.teacher_temp_at(max(progress.epoch - start, 0), progress.epochs),
        }

    def teacher_temp_at(self, epoch: int, epochs: float) -> float:
        """The teacher's temperature so many whole epochs after its warm-up began."""
        temp, start = self.spec["teacher_temp"], self.spec["teacher_temp_start"]
        warmup = int(self.durations["teacher_temp_warmup_epochs"].of(epochs))
        return scheduled("constant", epoch, epochs, start=temp, end=temp, warmup=warmup, warmup_start=start)

    @property
    def durations(self) -> dict[str, Duration]:
        given = self.spec["teacher_temp_warmup_epochs"]
        return {"teacher_temp_warmup_epochs": Duration(given, published=30, whole=True)}

    def check(self, epochs: float) -> None:
        start = self.spec["mask_start_epoch"]
        if start >= epochs:
            raise ValueError(
                f"loss.mask_start_epoch={start} lies at or after the end of training (trainer.max_epochs={epochs:g}): "
                f"nothing would ever be hidden; loss.mask_start_epoch={int(epochs / 6)} would do, or loss=view"
            )
