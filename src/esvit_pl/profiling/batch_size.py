"""Which batch fits into a device's memory, and how to split one that does not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from torch.nn.modules.batchnorm import _BatchNorm

from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.memory import Need, predict

GIB, MIB = 2**30, 2**20


class Verdict(NamedTuple):
    """Whether a batch fits, and how to split it if it does not. As a string, the line to print."""

    batch: int
    needed_bytes: int
    available_bytes: int
    """Bytes that the device has, before the margin is taken off."""
    micro_batch: int
    """The largest part of the batch that fits and divides it; 0 if no image does."""
    accumulate: int
    micro_bytes: int
    """What a micro-batch needs; the smallest possible one if none fits."""
    batch_norm: bool
    margin: float
    """Share of the memory that is to stay free."""

    def __str__(self) -> str:
        needs = f"batch {self.batch} needs {as_size(self.needed_bytes)}"
        there = f"{as_size(self.available_bytes)} are available"
        if self.micro_batch == self.batch:
            return f"{needs}; {there}: it fits"
        if self.needed_bytes <= self.available_bytes:
            there += f", {100 * self.margin:g} % of them to stay free"
        if not self.micro_batch:
            least = "the smallest with batch norm" if self.batch_norm else "one image"
            return (
                f"{needs}; {there}. No batch fits, {least} takes {as_size(self.micro_bytes)}: choose a smaller "
                "backbone, fewer or smaller views (augment.num_local, augment.global_size), smaller heads "
                "(settings of the loss), or trainer.precision=bf16-mixed"
            )
        statistics = f"; batch norm then sees {self.micro_batch} images at a time" if self.batch_norm else ""
        return (
            f"{needs}; {there}. {self.micro_batch} fits ({as_size(self.micro_bytes)}): "
            f"datamodule.batch_size={self.micro_batch} trainer.accumulate_grad_batches={self.accumulate}{statistics}"
        )


def judge(
    step: PretrainingStep,
    recipe: OptimizerRecipe,
    *,
    batch: int,
    available_bytes: int,
    margin: float = 0.1,
    predict: Callable[..., Need] = predict,
    **how: Any,
) -> Verdict:
    """Whether a batch fits, and if not the fewest micro-batches of equal size that do: the global batch stays.

    Args:
        step, recipe: as in `predict`.
        batch: images of an optimizer step on one process.
        available_bytes: of the device (`available_bytes`).
        margin: share of them that is to stay free, for what a prediction does not see.
        predict: what predicts.
        how: ``sides``, ``precision`` and ``device`` of `predict`.
    """

    @cache
    def need(size: int) -> int:
        return predict(step, recipe, batch_size=size, accumulate=1 if size == batch else 2, **how).predicted_bytes

    smallest, limit = smallest_batch(step), (1 - margin) * available_bytes
    norm = smallest > 1
    if need(batch) <= limit:
        return Verdict(batch, need(batch), available_bytes, batch, 1, need(batch), norm, margin)
    parts = [size for size in range(min(smallest, batch), batch + 1) if batch % size == 0]
    fitting = bisect_right(parts, limit, key=need)  # so many of them, since memory grows with the batch
    if not fitting:
        return Verdict(batch, need(batch), available_bytes, 0, 0, need(parts[0]), norm, margin)
    micro_batch = parts[fitting - 1]
    accumulate = batch // micro_batch
    return Verdict(batch, need(batch), available_bytes, micro_batch, accumulate, need(micro_batch), norm, margin)


def smallest_batch(step: PretrainingStep) -> int:
    """Images that a micro-batch must have: 1, or 2 with batch norm, which may find no variance in a single one."""
    return 1 + any(isinstance(part, _BatchNorm) for part in step.student.modules())


def as_size(size: float) -> str:
    """``48.2 GiB``"""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
