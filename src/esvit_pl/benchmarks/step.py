"""Where the time of a pretraining step goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from esvit_pl.backbones import build
from esvit_pl.ema import ema_update_, make_teacher
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import EsViTObjective, Progress
from esvit_pl.optim import OptimizerRecipe, clip_each_, parameter_groups


def step_seconds(
    *,
    batch_size: int = 8,
    num_prototypes: int = 4096,
    repeats: int = 3,
    sides: tuple[int, ...] = (224,) * 2 + (96,) * 8,
) -> dict[str, float]:
    """Median seconds of each part of one step of a micro Swin (windows of 7), and of the whole.

    Args:
        batch_size: images.
        num_prototypes: of both heads.
        repeats: steps measured, after one to warm up.
        sides: of the views in pixels; the first two are the teacher's.
    """
    torch.manual_seed(0)
    backbone = build("swin", embed_dim=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], drop_path_rate=0.0)
    objective = EsViTObjective(num_prototypes=num_prototypes)
    student = MultiCropNetwork(backbone, objective.heads(backbone.width, backbone.region_width))
    teacher = make_teacher(student)
    optimizer = OptimizerRecipe().build(parameter_groups(student))
    views = [torch.randn(batch_size, 3, side, side) for side in sides]
    seconds: dict[str, list[float]] = {}

    def timed(part: str, function: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = function()
        seconds.setdefault(part, []).append(perf_counter() - start)
        return result

    for _ in range(repeats + 1):
        with torch.no_grad():
            target = timed("teacher forward", lambda: teacher(views[:2]))
        seen = timed("student forward", lambda: student(views))
        losses = timed("objective", partial(objective, seen, target, Progress(0, 0, 1)))
        timed("backward", losses.total.backward)
        timed("clip, optimizer, centres, teacher", lambda: _finish(student, teacher, objective, optimizer))
    parts = {part: median(values[1:]) for part, values in seconds.items()}
    return parts | {"whole step": sum(parts.values())}


def _finish(
    student: MultiCropNetwork, teacher: MultiCropNetwork, objective: EsViTObjective, optimizer: torch.optim.Optimizer
) -> None:
    clip_each_(student.parameters(), 3.0)
    optimizer.step()
    optimizer.zero_grad()
    objective.commit(objective.window())
    ema_update_(teacher, student, 0.996)
