"""Which batch fits into a device's memory, and how to split one that does not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import Any, NamedTuple

from torch.nn.modules.batchnorm import _BatchNorm

from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.memory import Need, predict

GIB, MIB = 2**30, 2**20
MANY_IMAGES = 4096
FEW = 4
"""Guesses along a line; after these, what is left is halved again and again."""


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

    smallest = smallest_batch(step)
    norm = smallest > 1
    if need(batch) <= (1 - margin) * available_bytes:
        return Verdict(batch, need(batch), available_bytes, batch, 1, need(batch), norm, margin)
    parts = [size for size in range(min(smallest, batch), batch + 1) if batch % size == 0]
    fitting = fits(need, available_bytes, margin=margin, among=parts)
    if not fitting:
        return Verdict(batch, need(batch), available_bytes, 0, 0, need(parts[0]), norm, margin)
    return Verdict(batch, need(batch), available_bytes, *accumulation(batch, fitting), need(fitting), norm, margin)


def smallest_batch(step: PretrainingStep) -> int:
    """Images that a micro-batch must have: 1, or 2 with batch norm, which may find no variance in a single one."""
    return 1 + any(isinstance(part, _BatchNorm) for part in step.student.modules())


def fits(
    predict: Callable[[int], int],
    available_bytes: int,
    *,
    margin: float = 0.1,
    among: Sequence[int] = range(1, MANY_IMAGES + 1),
) -> int:
    """The largest batch whose prediction leaves a margin free; 0 if there is none.

    Memory grows with the batch, nearly along a line: each guess is where the line between the largest batch that is
    known to fit and the smallest that is known not to meets the limit. All that is said to fit was predicted to.

    Args:
        predict: batch -> bytes.
        available_bytes: of the device.
        margin: share of them that is to stay free.
        among: the batches to choose from, ascending.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be 0 or more and below 1, got {margin}; it is the share of memory to stay free")
    limit = (1 - margin) * available_bytes
    low, high = 0, len(among) - 1  # places of what fits and of what does not
    lower, upper = predict(among[low]), predict(among[high])
    if lower > limit:
        return 0
    if upper <= limit:
        return among[high]
    for guesses in count():
        if high - low == 1:
            break
        meeting = among[low] + (limit - lower) / (upper - lower) * (among[high] - among[low])
        guess = max(bisect_right(among, meeting) - 1, low + 1)
        if guesses > FEW:  # no line then
            guess = (low + high) // 2
        size = predict(among[guess])
        if size <= limit:
            low, lower = guess, size
        else:
            high, upper = guess, size
    return among[low]


def accumulation(batch: int, fitting: int) -> tuple[int, int]:
    """(micro-batch, accumulate): the fewest equal parts of a batch that fit; their product is the batch.

    Raises:
        ValueError: not even one image fits.
    """
    if fitting < 1:
        raise ValueError(f"no micro-batch of a batch of {batch} fits: {fitting} images do; it takes 1 or more")
    micro_batch = max(size for size in range(1, min(batch, fitting) + 1) if batch % size == 0)
    return micro_batch, batch // micro_batch


def as_size(size: float) -> str:
    """``48.2 GiB``"""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
