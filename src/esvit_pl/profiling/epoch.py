"""How long an epoch of a training takes on this machine, from a few of its steps and batches."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from statistics import median
from typing import Any

import torch

from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.loader import batches_needed, loader_rate
from esvit_pl.profiling.measure import seconds
from esvit_pl.profiling.memory import Precision
from esvit_pl.profiling.training import Noise, Training


def step_seconds(
    step: PretrainingStep,
    recipe: OptimizerRecipe,
    sides: Iterable[int],
    *,
    batch_size: int,
    precision: Precision,
    device: torch.device | str = "cpu",
    repeats: int = 3,
) -> float:
    """Seconds of a micro-batch and the optimizer step after it, on noise: the median, after two steps to warm up.

    Args:
        step: with weights; it moves to the device and is trained.
        recipe: its optimizer.
        sides: of the views in pixels, global ones first.
        batch_size: images.
        precision: of `memory.PRECISIONS`.
        device: where.
        repeats: steps that are measured.
    """
    training = Training(step.to(device, precision.weights), recipe, autocast=precision.autocast)
    batch = Noise(step, list(sides), batch_size, precision.weights).batch(device)
    took = [seconds(lambda: training(batch), device) for _ in range(2 + repeats)]
    return median(took[2:])


def batch_seconds(loader: Iterable[Any], *, batch_size: int, num_workers: int) -> float:
    """Seconds that a loader takes for a batch when nothing else runs.

    Args:
        loader: of `batches_needed(num_workers)` batches or more.
        batch_size: images.
        num_workers: its processes.
    """
    some = islice(loader, batches_needed(num_workers))
    return batch_size / loader_rate(some, batch_size=batch_size, num_workers=num_workers)


def micro_batch_seconds(step: float, loading: float, *, at_once: bool) -> float:
    """What a micro-batch takes together.

    Args:
        step: of `step_seconds`.
        loading: of `batch_seconds`.
        at_once: loading processes and step do not share their processors: the slower one counts, else their sum.

    >>> micro_batch_seconds(2.0, 0.5, at_once=True), micro_batch_seconds(2.0, 0.5, at_once=False)
    (2.0, 2.5)
    """
    return max(step, loading) if at_once else step + loading
