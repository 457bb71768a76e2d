"""The rivals with small heads, and small trainings with them, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import toys
from torch import Tensor

from esvit_pl import distributed
from esvit_pl.objectives import (
    BYOLObjective,
    DenseCLObjective,
    IBOTObjective,
    MoBYObjective,
    MoCoV3Objective,
    MPPObjective,
    Objective,
    Progress,
    SimCLRObjective,
    SimMIMObjective,
    SwAVObjective,
    WithRegionsObjective,
)
from esvit_pl.optim import parameter_groups
from esvit_pl.pretraining import PretrainingStep

SMALL = {"hidden_dim": 16, "out_dim": 8}
MAKE: dict[str, Callable[[], Objective]] = {
    "mocov3": lambda: MoCoV3Objective(**SMALL),
    "moby": lambda: MoBYObjective(**SMALL, queue_length=16),
    "byol": lambda: BYOLObjective(**SMALL),
    "swav": lambda: SwAVObjective(**SMALL, num_prototypes=12, queue_length=16, queue_start_epoch=0),
    "simclr": lambda: SimCLRObjective(out_dim=8),
    "densecl": lambda: DenseCLObjective(**SMALL, queue_length=16),
    "ibot": lambda: IBOTObjective(**SMALL, num_prototypes=12),
    "simmim": lambda: SimMIMObjective(cell=8),
    "mpp": lambda: MPPObjective(bits=1),
    "byol_regions": lambda: WithRegionsObjective(MAKE["byol"](), **SMALL, num_prototypes=12),
    "moby_regions": lambda: WithRegionsObjective(MAKE["moby"](), **SMALL, num_prototypes=12),
    "swav_regions": lambda: WithRegionsObjective(MAKE["swav"](), **SMALL, num_prototypes=12),
}
SIDES = {name: (32, 32) if name in ("simclr", "densecl") else (32, 32, 16) for name in MAKE}
BATCH = 8


def batch(name: str, number: int, part: slice = slice(None)) -> dict[str, Any]:
    """Views and masks of a step; `part` are the images of a process. Half of the cells of global views are hidden."""
    noise = torch.Generator().manual_seed(number)
    views = [torch.randn(BATCH, 3, side, side, generator=noise, dtype=torch.float64) for side in SIDES[name]]
    masks = [torch.rand(BATCH, 4, 4, generator=noise) < 0.5 if side == 32 else None for side in SIDES[name]]
    return {"views": [view[part] for view in views], "masks": [m if m is None else m[part] for m in masks]}


def training(name: str, steps: int = 4) -> tuple[dict[str, Tensor], list[float]]:
    """The state after some steps, and their losses. Several processes share each batch, and average gradients."""
    torch.manual_seed(0)
    step = PretrainingStep(toys.backbone(), MAKE[name](), momentum=0.9, freeze_prototypes_epochs=0).double()
    optimizer = torch.optim.SGD(parameter_groups(step.student), lr=0.1)
    size = BATCH // distributed.num_ranks()
    part = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    said = []
    for number in range(steps):
        progress = Progress(number, steps, micro_batch=number)
        step(batch(name, number, part), progress).total.backward()
        for parameter in step.student.parameters():
            if parameter.grad is not None:
                parameter.grad = distributed.mean_over_ranks(parameter.grad)
        step.before_optimizer(progress)
        optimizer.step()
        optimizer.zero_grad()
        said.append(sum(float(v) for key, v in step.finish(progress).measures.items() if key.endswith("_loss")))
    return toys.state(step), said
