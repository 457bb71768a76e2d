"""A whole training recipe on this machine: images a second of its step and of its loader, and which of them bounds."""

# v views | b images | p projection width | k prototypes

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from esvit_pl.backbones import Backbone
from esvit_pl.objectives.interface import Objective, Views
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.measure import peak_bytes, seconds
from esvit_pl.profiling.training import channels_of, on_noise


class Rate(NamedTuple):
    """What one part of a training achieves."""

    part: str
    images_per_second: float
    peak_bytes: int | None = None
    """All that is held at once: weights, moments and views too."""
    utilization_share: float | None = None
    """Model FLOPs utilisation: the model's operations, each counted once, over what the device could do."""


def recipe_rates(step: Rate, loader: float, *, flops: int, device_flops: float | None) -> Iterator[Rate]:
    """The step, the loader, and the slower of the two.

    Args:
        step: of `step_rate`.
        loader: its images a second.
        flops: `model_flops`.
        device_flops: operations a second of the device at its best; None leaves the utilisation out.
    """

    def used(rate: float) -> float | None:
        return rate * flops / device_flops if device_flops else None

    yield step._replace(utilization_share=used(step.images_per_second))
    yield Rate("loader", loader)
    slower, rate = min(("loader", loader), ("step", step.images_per_second), key=lambda part: part[1])
    yield Rate(f"training, bound by the {slower}", rate, None, used(rate))


def step_rate(
    make: Callable[[], PretrainingStep],
    recipe: OptimizerRecipe,
    sides: Sequence[int],
    *,
    batch_size: int,
    repeats: int = 3,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Rate:
    """Images a second of the training step on noise, and its memory.

    Args:
        make: gives a new step on the device, and again for the memory, which counts from an empty machine.
        recipe: the optimizer.
        sides: of the views in pixels, global ones first.
        batch_size: images.
        repeats: steps measured, after one to warm up.
        device: where.
        autocast: type to which networks may round.
    """
    begin = partial(on_noise, make, recipe, sides, batch_size=batch_size, device=device, autocast=autocast)
    take_a_step = begin()
    take_a_step()
    rate = batch_size / median(seconds(take_a_step, device) for _ in range(repeats))
    del take_a_step
    return Rate("step", rate, peak_bytes(partial(two_steps, begin), device))


def two_steps(begin: Callable[[], Callable[[], object]]) -> None:
    """All that a training holds: the first step makes the optimizer's moments."""
    take_a_step = begin()
    for _ in range(2):
        take_a_step()


def model_flops(backbone: Backbone, objective: Objective, sides: Sequence[int], num_global: int = 2) -> int:
    """Floating point operations that a step needs for one image, two for a multiply-add. Nothing is computed.

    Products of matrices alone: those of the student's forward pass three times, since backward has two for each; those
    of the teacher's once; products of projections and prototypes likewise. What is computed twice to save memory
    counts once, and what an objective multiplies beside its prototypes does not count.

    Args:
        backbone: the student's.
        objective: what is learnt.
        sides: of the views in pixels, global ones first.
        num_global: so many views are the teacher's, too.
    """
    flops = 0
    for forward in forward_passes(backbone, objective, sides, num_global):
        with FlopCounterMode(display=False) as counter:
            forward.run()
        flops += forward.times * counter.get_total_flops()
    return flops


class ForwardPass(NamedTuple):
    """A part of a step, on the meta device."""

    run: Callable[[], object]
    times: int
    """How often the step has products as large as its own: the student's thrice, since backward has two for each."""
    logits: bool
    """Whether it is projections with prototypes, and not a network."""


def forward_passes(
    backbone: Backbone, objective: Objective, sides: Sequence[int], num_global: int = 2, batch_size: int = 1
) -> Iterator[ForwardPass]:
    """All that a step multiplies: student and teacher, and the logits of either. Arguments as in `model_flops`."""
    with torch.device("meta"):
        step = PretrainingStep(deepcopy(backbone).to("meta"), deepcopy(objective), num_global=num_global)
        step.eval().requires_grad_(False)
        views = [torch.empty(batch_size, channels_of(backbone), side, side) for side in sides]
    for network, some, times in ((step.student, views, 3), (step.teacher, views[:num_global], 1)):
        if network is not None:
            yield ForwardPass(partial(network, some), times, logits=False)
            yield ForwardPass(partial(_logits, network(some)), times, logits=True)


def _logits(seen: Views) -> list[Tensor]:
    return [torch.cat([z.flatten(0, -2) for z in seen.z[name]]) @ w.mT for name, w in seen.prototypes.items()]
