"""DINO's view-level objective, EsViT's region-level one, or both (arXiv 2106.09785)."""

# b images | n regions | p projection width | k prototypes

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from esvit_pl.augment.batch import Batch
from esvit_pl.heads import ProjectionHead, Prototypes
from esvit_pl.losses import Center, RegionLoss, ViewLoss, match_views, matched_share
from esvit_pl.objectives.distributions import distributions
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window
from esvit_pl.schedules import Duration, check_shape, scheduled
from esvit_pl.specs import spec_of


class EsViTObjective(Objective):
    """view_weight * L_V + region_weight * L_R. With ``region_weight=0`` it is DINO.

    Args:
        view_weight: weight of the view loss; 0.5 beside a region loss as released (the paper writes the plain sum).
        region_weight: weight of the region loss; 0 leaves the region head out.
        region_start_epoch: epoch at which the region loss joins. Before it the loss is the view loss with weight 1, and
            the region head stands still.
        num_prototypes: k of each head.
        hidden_dim: width of the heads' hidden layers.
        out_dim: width p of the projections.
        num_layers: Linear layers of a head.
        batch_norm: batch norm in the view head's hidden layers.
        region_batch_norm: the same in the region head's.
        norm_last_layer: hold the prototypes' gains at 1.
        student_temp: temperature of the student's distributions.
        teacher_temp: temperature of the teacher's after its warm-up.
        teacher_temp_start: the same in the first epoch.
        teacher_temp_warmup_epochs: whole epochs from one to the other, linearly. None for 30, and for three tenths of a
            training of less than 100 epochs.
        teacher_temp_end: where it goes from there in the last epochs; None stays.
        teacher_temp_schedule: shape of that way, a name in `schedules.SHAPES`.
        center_momentum: share of the old centre in the new one.

    >>> objective = EsViTObjective(num_prototypes=8, hidden_dim=8, out_dim=4)
    >>> {name: head.reads for name, head in objective.heads(width=16, region_width=16).items()}
    {'view': 'pooled', 'region': 'regions'}
    """

    def __init__(
        self,
        *,
        view_weight: float = 0.5,
        region_weight: float = 0.5,
        region_start_epoch: int = 0,
        num_prototypes: int = 65536,
        hidden_dim: int = 2048,
        out_dim: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        region_batch_norm: bool = False,
        norm_last_layer: bool = False,
        student_temp: float = 0.1,
        teacher_temp: float = 0.07,
        teacher_temp_start: float = 0.04,
        teacher_temp_warmup_epochs: int | None = None,
        teacher_temp_end: float | None = None,
        teacher_temp_schedule: str = "constant",
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.spec = spec_of("esvit", locals())
        _check(self.spec)
        self.weights = {name: w for name, w in (("view", view_weight), ("region", region_weight)) if w > 0}
        self.centers = nn.ModuleDict(
            {name: Center(num_prototypes, out_dim, momentum=center_momentum) for name in self.weights}
        )
        self.view_loss, self.region_loss = ViewLoss(student_temp), RegionLoss(student_temp)

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        reads = {"view": ("pooled", width, "batch_norm"), "region": ("regions", region_width, "region_batch_norm")}
        heads = nn.ModuleDict()
        for name in self.weights:
            features, in_dim, batch_norm = reads[name]
            heads[name] = ProjectionHead(
                in_dim,
                reads=features,
                hidden_dim=self.spec["hidden_dim"],
                out_dim=self.spec["out_dim"],
                num_layers=self.spec["num_layers"],
                batch_norm=self.spec[batch_norm],
                prototypes=Prototypes(
                    self.spec["out_dim"], self.spec["num_prototypes"], fixed_gain=self.spec["norm_last_layer"]
                ),
            )
        return heads

    def active(self, progress: Progress) -> set[str]:
        waiting = "region" in self.weights and progress.epoch < self.spec["region_start_epoch"]
        return {"view"} if waiting else set(self.weights)

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        names = [name for name in self.weights if name in self.active(progress)]
        losses = Losses({}, {"view": 1.0} if names != list(self.weights) else self.weights)
        for name in names:
            self._add(losses, name, student, teacher, progress)
        return losses

    def _add(self, losses: Losses, name: str, student: Views, teacher: Views, progress: Progress) -> None:
        """One term and its diagnostics."""
        center = self.centers[name]
        assert isinstance(center, Center)
        temps = {"student_temp": self.spec["student_temp"], "teacher_temp": self.schedules(progress)["teacher_temp"]}
        seen = distributions(name, student, teacher, center, **temps, observe=self.training)
        # Autocast would take what follows to half precision.
        with torch.autocast(seen.entropy.device.type, enabled=False):
            if name == "view":
                loss = self.view_loss(seen.z, seen.partitions, seen.targets)
            else:
                matches = match_views(student.regions, teacher.regions)
                loss = self.region_loss(seen.z, seen.partitions, seen.targets, matches)
                losses.diagnostics["matched_share"] = matched_share(matches, [r.shape[1] for r in teacher.regions])
        losses.terms[name] = loss
        losses.diagnostics |= {**seen.diagnostics, f"{name}_kl": loss.detach() - seen.entropy}

    @property
    def _centers(self) -> list[Center]:
        return [center for center in self.centers.values() if isinstance(center, Center)]

    def collect(self) -> Window:
        return Window(sum=torch.cat([center.window() for center in self._centers]))

    def commit(self, window: Window) -> None:
        assert window.sum is not None
        for center, part in zip(self._centers, window.sum.chunk(len(self.centers)), strict=True):
            center.commit(part)

    def reset(self) -> None:
        for center in self._centers:
            center.reset()

    def schedules(self, progress: Progress) -> dict[str, float]:
        temp = self.spec["teacher_temp"]
        end = self.spec["teacher_temp_end"]
        temp = scheduled(
            self.spec["teacher_temp_schedule"],
            progress.epoch,  # by whole epochs, as released (docs/recipes.md, "Temperatures")
            progress.epochs,
            start=temp,
            end=temp if end is None else end,
            warmup=int(self.durations["teacher_temp_warmup_epochs"].of(progress.epochs)),
            warmup_start=self.spec["teacher_temp_start"],
        )
        return {"teacher_temp": temp}

    @property
    def durations(self) -> dict[str, Duration]:
        given = self.spec["teacher_temp_warmup_epochs"]
        return {"teacher_temp_warmup_epochs": Duration(given, published=30, whole=True)}

    def check(self, epochs: float) -> None:
        start = self.spec["region_start_epoch"]
        if "region" in self.weights and start >= epochs:
            raise ValueError(
                f"loss.region_start_epoch={start} lies at or after the end of training "
                f"(trainer.max_epochs={epochs:g}): the region loss would never join; "
                f"loss.region_start_epoch={int(epochs * 2 / 3)} would do, or a longer training, or loss=view"
            )


def _check(spec: dict[str, Any]) -> None:
    if spec["view_weight"] < 0 or spec["region_weight"] < 0 or spec["view_weight"] + spec["region_weight"] == 0:
        raise ValueError(
            "EsViTObjective needs weights of 0 or more, one of them positive, got "
            f"view_weight={spec['view_weight']}, region_weight={spec['region_weight']}"
        )
    if spec["region_start_epoch"] < 0:
        raise ValueError(f"EsViTObjective needs region_start_epoch of 0 or later, got {spec['region_start_epoch']}")
    if spec["region_start_epoch"] and not (spec["view_weight"] and spec["region_weight"]):
        raise ValueError(
            f"region_start_epoch={spec['region_start_epoch']} needs a view loss to begin with and a region loss "
            f"to join, got view_weight={spec['view_weight']}, region_weight={spec['region_weight']}"
        )
    for name in (
        "num_prototypes",
        "hidden_dim",
        "out_dim",
        "num_layers",
        "student_temp",
        "teacher_temp",
        "teacher_temp_start",
    ):
        if spec[name] <= 0:
            raise ValueError(f"EsViTObjective needs a positive {name}, got {spec[name]}")
    if spec["num_prototypes"] == 1:
        warnings.warn("loss.num_prototypes=1: with one prototype the loss is always 0; nothing is learnt", stacklevel=3)
    if (spec["teacher_temp_warmup_epochs"] or 0) < 0:
        got = spec["teacher_temp_warmup_epochs"]
        raise ValueError(f"EsViTObjective needs teacher_temp_warmup_epochs of 0 or more, got {got}")
    if spec["teacher_temp_end"] is not None and spec["teacher_temp_end"] <= 0:
        raise ValueError(f"EsViTObjective needs a positive teacher_temp_end, got {spec['teacher_temp_end']}")
    check_shape("loss.teacher_temp_schedule", spec["teacher_temp_schedule"])
    if (spec["teacher_temp_end"] is None) != (spec["teacher_temp_schedule"] == "constant"):
        raise ValueError(
            f"teacher_temp_end={spec['teacher_temp_end']} and teacher_temp_schedule={spec['teacher_temp_schedule']} do "
            "not go together: a temperature that moves after its warm-up needs both, an end and linear or cosine"
        )
    if not 0 <= spec["center_momentum"] <= 1:
        raise ValueError(f"EsViTObjective needs center_momentum between 0 and 1, got {spec['center_momentum']}")
