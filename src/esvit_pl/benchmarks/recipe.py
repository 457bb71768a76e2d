"""A whole training recipe on this machine: images a second of its step and of its loader, and which of them bounds."""

# v views | b images | p projection width | k prototypes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from esvit_pl.backbones import Backbone
from esvit_pl.benchmarks.measure import Comparison
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import EsViTObjective

DENSE_TERAFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Part of a GPU's name -> what its data sheet gives for bfloat16 without sparsity. The first that fits counts."""


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
    with torch.device("meta"):
        network = MultiCropNetwork(
            deepcopy(backbone).to("meta").eval(), objective.heads(backbone.width, backbone.region_width)
        ).requires_grad_(False)
        views = [torch.empty(1, backbone.spec["in_chans"], side, side) for side in sides]
        student, teacher = (_forward_flops(network, part) for part in (views, views[:num_global]))
    return 3 * student + teacher


def _forward_flops(network: MultiCropNetwork, views: list[torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        seen = network(views)
        for name, prototypes in seen.prototypes.items():
            for z in seen.z[name]:
                z @ prototypes.mT
    return counter.get_total_flops()


def device_flops(name: str) -> float | None:
    """Operations a second of a GPU by its name; None for one that is not in `DENSE_TERAFLOPS`."""
    return next((1e12 * tera for part, tera in DENSE_TERAFLOPS.items() if part.lower() in name.lower()), None)
