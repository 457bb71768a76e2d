"""EsViT's region loss beside the view loss of another method (the paper's ablation adds it to BYOL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.backbones.interface import Backbone
from esvit_pl.objectives.esvit import EsViTObjective
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window
from esvit_pl.schedules import Duration


class WithRegionsObjective(Objective):
    """view_weight * the loss of `view` + region_weight * L_R.

    A method without a teacher gets one, for the regions alone.

    Args:
        view: another method. It must neither hide patches nor have a loss of regions of its own.
        view_weight: weight of its loss.
        region_weight: weight of the region loss.
        settings: of the region loss, as in `EsViTObjective`.

    Raises:
        ValueError: the method does not go together with a region loss; the message says why.

    >>> from esvit_pl.objectives import BYOLObjective
    >>> objective = WithRegionsObjective(BYOLObjective(hidden_dim=8, out_dim=4), num_prototypes=8, hidden_dim=8)
    >>> sorted(objective.heads(width=16, region_width=16))
    ['projection', 'region']
    """

    def __init__(
        self, view: Objective, *, view_weight: float = 1.0, region_weight: float = 1.0, **settings: Any
    ) -> None:
        super().__init__()
        name = type(view).__name__
        if view.uses_masks:
            raise ValueError(
                f"{name} hides patches from the student, and a region that it does not see matches none; use a view "
                "loss without masks (view=byol, mocov3, moby, swav or simclr)"
            )
        if "region" in view.heads(8, 8):
            raise ValueError(
                f"{name} has a loss of regions of its own; use a view loss without one (view=byol, mocov3, moby, swav "
                "or simclr)"
            )
        if view_weight <= 0 or region_weight <= 0:
            raise ValueError(
                "WithRegionsObjective needs positive weights, got "
                f"view_weight={view_weight}, region_weight={region_weight}"
            )
        self.view = view
        self.region = EsViTObjective(view_weight=0.0, region_weight=1.0, **settings)
        self.weights = {"view": view_weight, "region": region_weight}
        self.two_views = view.two_views
        self.head_rows, self.momentum_of_next_step = view.head_rows, view.momentum_of_next_step
        self.spec = {"name": "with_regions", "view_weight": view_weight, "region_weight": region_weight}
        self.spec |= {"view": view.spec, "region": self.region.spec}

    @property
    def parts(self) -> tuple[Objective, Objective]:
        return self.view, self.region

    def prepare(self, backbone: Backbone) -> None:
        self.view.prepare(backbone)

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        heads = self.view.heads(width, region_width)
        heads.update(dict(self.region.heads(width, region_width).items()))
        return heads

    def student_only_heads(self) -> nn.ModuleDict:
        return self.view.student_only_heads()

    def student_sees(self, batch: Batch, progress: Progress) -> tuple[Sequence[Tensor], Sequence[Tensor | None] | None]:
        return self.view.student_sees(batch, progress)

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        both = Losses({}, {})
        for name, part in zip(self.weights, self.parts, strict=True):
            losses: Losses = part(student, teacher, batch, progress)
            both.terms |= losses.terms
            both.weights |= {term: self.weights[name] * weight for term, weight in losses.weights.items()}
            both.diagnostics |= losses.diagnostics
        return both

    def collect(self) -> Window:
        view, region = self.view.collect(), self.region.collect()
        assert region.sum is not None
        sums = [region.sum] if view.sum is None else [region.sum, view.sum]
        return Window(torch.cat(sums), view.gather)

    def commit(self, window: Window) -> None:
        assert window.sum is not None
        own = self.region.collect().sum
        assert own is not None
        of_region, of_view = window.sum[: len(own)], window.sum[len(own) :]
        self.region.commit(Window(of_region))
        self.view.commit(Window(of_view if len(of_view) else None, window.gather))

    def reset(self) -> None:
        for part in self.parts:
            part.reset()

    def schedules(self, progress: Progress) -> dict[str, float]:
        return {**self.view.schedules(progress), **self.region.schedules(progress)}

    @property
    def durations(self) -> dict[str, Duration]:
        return {**self.view.durations, **self.region.durations}

    def check(self, epochs: float) -> None:
        for part in self.parts:
            part.check(epochs)
