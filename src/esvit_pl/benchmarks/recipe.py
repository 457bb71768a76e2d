"""A whole training recipe on this machine: images a second of its step and of its loader, and which of them bounds."""

# v views | b images | p projection width | k prototypes

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from esvit_pl.backbones import Backbone
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import EsViTObjective, Views
from esvit_pl.profiling.measure import Comparison


class Rate(NamedTuple):
    """What one part of a training achieves."""

    part: str
    images_per_second: float
    ratio: float | None = None
    """To the straightforward step."""
    peak_bytes: int | None = None
    """All that is held at once."""
    utilization_share: float | None = None
    """Model FLOPs utilisation: the model's operations, each counted once, over what the device could do."""


def recipe_rates(
    whole: Comparison, loader: float, *, batch_size: int, flops: int, device_flops: float | None
) -> Iterator[Rate]:
    """Both forms of the step, the loader, and the slower of loader and our step.

    Args:
        whole: the last row of `benchmarks.step.step_costs`.
        loader: its images a second.
        batch_size: of the step.
        flops: `model_flops`.
        device_flops: operations a second of the device at its best; None leaves the utilisation out.
    """
    straight, ours = batch_size / whole.straight_seconds, batch_size / whole.our_seconds

    def used(rate: float) -> float | None:
        return rate * flops / device_flops if device_flops else None

    yield Rate("step, straightforward", straight, 1.0, whole.straight_bytes, used(straight))
    yield Rate("step, ours", ours, whole.ratio, whole.our_bytes, used(ours))
    yield Rate("loader", loader)
    slower, rate = min(("loader", loader), ("step", ours), key=lambda part: part[1])
    yield Rate(f"training, bound by the {slower}", rate, None, None, used(rate))


def model_flops(backbone: Backbone, objective: EsViTObjective, sides: Sequence[int], num_global: int = 2) -> int:
    """Floating point operations that a step needs for one image, two for a multiply-add. Nothing is computed.

    Products of matrices alone: those of the student's forward pass three times, since backward has two for each; those
    of the teacher's once; logits of all projections likewise. What is computed twice to save memory counts once.

    Args:
        backbone: the student's.
        objective: with its heads.
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
    backbone: Backbone, objective: EsViTObjective, sides: Sequence[int], num_global: int = 2, batch_size: int = 1
) -> Iterator[ForwardPass]:
    """All that a step multiplies: student and teacher, and the logits of either. Arguments as in `model_flops`."""
    with torch.device("meta"):
        network = MultiCropNetwork(
            deepcopy(backbone).to("meta").eval(), objective.heads(backbone.width, backbone.region_width)
        ).requires_grad_(False)
        views = [torch.empty(batch_size, backbone.spec["in_chans"], side, side) for side in sides]
    for some, times in ((views, 3), (views[:num_global], 1)):
        yield ForwardPass(partial(network, some), times, logits=False)
        yield ForwardPass(partial(_logits, network(some)), times, logits=True)


def _logits(seen: Views) -> list[Tensor]:
    return [torch.cat([z.flatten(0, -2) for z in seen.z[name]]) @ w.mT for name, w in seen.prototypes.items()]
