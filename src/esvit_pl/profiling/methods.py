"""What a training step of each method costs, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.measure import peak_bytes, seconds
from esvit_pl.profiling.recipe import two_steps
from esvit_pl.profiling.training import on_noise


class Method(NamedTuple):
    """How one method is trained."""

    make: Callable[[], PretrainingStep]
    """Gives a new step on the device."""
    recipe: OptimizerRecipe
    sides: Sequence[int]
    """Sides of the views in pixels; the global views come first."""


class Cost(NamedTuple):
    """What one method's step takes."""

    method: str
    views: int
    """So many views are made of an image."""
    trained_parameters: int
    """The numbers that the student learns, in its backbone, heads and prototypes."""
    step_seconds: float
    """The median."""
    time_ratio: float
    """A step takes so many times as long as one of the first method."""
    peak_bytes: int
    """All that is held at once: weights, moments and views too."""


def costs(
    methods: Mapping[str, Method],
    *,
    batch_size: int,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Iterator[Cost]:
    """A row for each method. They take turns, step by step, so that a machine that slows down slows all of them.

    Args:
        methods: {name: how it is trained}. All of them are on the device while their time is measured.
        batch_size: images.
        repeats: steps of each that are measured, after one to warm up.
        device: where.
        autocast: type to which networks may round.

    >>> from esvit_pl.backbones import build
    >>> from esvit_pl.objectives import BYOLObjective
    >>> def make():
    ...     swin = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    ...     return PretrainingStep(swin, BYOLObjective(hidden_dim=8, out_dim=4))
    >>> (row,) = costs({"byol": Method(make, OptimizerRecipe(), [32, 32])}, batch_size=4, repeats=1)
    >>> row.method, row.views, row.time_ratio
    ('byol', 2, 1.0)
    """
    begin = {
        name: partial(on_noise, *method, batch_size=batch_size, device=device, autocast=autocast)
        for name, method in methods.items()
    }
    trainings = {name: begins() for name, begins in begin.items()}
    laps = [{name: seconds(step, device) for name, step in trainings.items()} for _ in range(1 + repeats)]
    lasted = {name: median(lap[name] for lap in laps[1:]) for name in methods}
    del trainings
    first = next(iter(lasted.values()))
    for name, method in methods.items():
        peak = peak_bytes(partial(two_steps, begin[name]), device)
        yield Cost(name, len(method.sides), trained_parameters(method.make()), lasted[name], lasted[name] / first, peak)


def trained_parameters(step: PretrainingStep) -> int:
    """Numbers that the optimizer changes."""
    return sum(weight.numel() for weight in step.student.parameters() if weight.requires_grad)
