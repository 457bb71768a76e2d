"""Schedules: whatever moves during training is a closed form of the step, so nothing of it needs to be saved.

A shape is a function ``shape(step, total, *, start, end) -> float``. A config names it, as in
``optimizer.lr_schedule=linear``; a shape of your own becomes an option when it is added to `SHAPES`:

    >>> SHAPES["halved"] = lambda step, total, *, start, end: start if 2 * step < total else start / 2
    >>> [scheduled("halved", step, 4, start=1.0, end=0.0) for step in range(4)]
    [1.0, 1.0, 0.5, 0.5]
    >>> del SHAPES["halved"]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Shape = Callable[..., float]


class Progress(NamedTuple):
    """Where training stands.

    >>> Progress.at(micro_batch=25, batches_per_epoch=20, epochs=3, accumulate=2)
    Progress(step=12, total=30, steps_per_epoch=10, micro_batch=25)
    """

    step: int
    """Optimizer steps that are done."""
    total: int
    """Optimizer steps of the whole training."""
    steps_per_epoch: int = 1
    micro_batch: int = 0
    """Batches that are done, counted over the whole training; with gradient accumulation several make a step."""

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def epochs(self) -> float:
        """Length of the whole training."""
        return self.total / self.steps_per_epoch

    @classmethod
    def at(cls, micro_batch: int, *, batches_per_epoch: int, epochs: int, accumulate: int = 1) -> Progress:
        """The progress before batch number `micro_batch` of a training of so many epochs, for a loop of your own."""
        per_epoch = batches_per_epoch // accumulate
        return cls(micro_batch // accumulate, per_epoch * epochs, per_epoch, micro_batch)


LONG = 100
"""Epochs of a training that has room for the published durations."""


class Duration(NamedTuple):
    """A part of a training, in epochs: what is given, or else the published number.

    In a training of less than `LONG` epochs the published number shrinks to its share of `LONG` epochs.

    >>> warmup = Duration(None, published=10)
    >>> [warmup.of(epochs) for epochs in (300, 100, 30, 3)]
    [10.0, 10.0, 3.0, 0.3]
    >>> Duration(5, published=10).of(30)
    5
    """

    given: float | None
    published: float
    whole: bool = False
    """Whether it is counted in whole epochs; then it is never less than one."""

    def of(self, epochs: float) -> float:
        """The duration in a training of so many epochs."""
        if self.given is not None:
            return self.given
        share = self.published * min(epochs, LONG) / LONG
        return max(round(share), 1) if self.whole else share

    def shrinks(self, epochs: float) -> bool:
        """Whether a training of so many epochs is too short for the published number, and nobody gave another."""
        return self.given is None and epochs < LONG

    def check(self, setting: str, epochs: float) -> None:
        """Refuse a given duration that reaches beyond a training of so many epochs.

        Raises:
            ValueError: it does; the message calls it `setting` and names a value that would do.
        """
        if self.given is not None and self.given > epochs:
            null = ", which is also what null means here" if self.published else ""
            raise ValueError(
                f"{setting}={self.given:g} is longer than training (trainer.max_epochs={epochs:g}); "
                f"{setting}={self._replace(given=None).of(epochs):g} would do{null}"
            )


def constant(step: float, total: float, *, start: float, end: float) -> float:
    """`start`, always."""
    return start


def linear(step: float, total: float, *, start: float, end: float) -> float:
    """A straight line from `start` at step 0 towards `end`, which step `total` would reach."""
    return start + (end - start) * (step / _positive(total))


def cosine(step: float, total: float, *, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 towards `end`, which step `total` would reach."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / _positive(total)))


SHAPES: dict[str, Shape] = {"constant": constant, "linear": linear, "cosine": cosine}
"""Name in a config -> shape."""


def scheduled(
    shape: str, step: float, total: float, *, start: float, end: float, warmup: int = 0, warmup_start: float = 0.0
) -> float:
    """The value at a step: a linear warm-up, then a shape over the steps that are left.

    Args:
        shape: a name in `SHAPES`.
        step: steps (or epochs) that are done.
        total: steps of the whole training.
        start: value at the end of the warm-up, where the shape starts.
        end: value towards which the shape goes.
        warmup: steps of warm-up, linearly from `warmup_start` to `start`, which the last of them reaches.
        warmup_start: value of the first step of the warm-up.
    """
    if step < warmup:
        return warmup_start + (start - warmup_start) * (step / max(warmup - 1, 1))
    return SHAPES[shape](step - warmup, total - warmup, start=start, end=end) if total > warmup else start


def check_shape(argument: str, shape: str) -> None:
    """Refuse a shape that nobody knows.

    Raises:
        ValueError: with the names that there are.
    """
    if shape not in SHAPES:
        raise ValueError(f"{argument} needs one of {', '.join(SHAPES)}, got {shape!r}")


def in_steps(epochs: float, steps_per_epoch: int) -> int:
    """A duration in epochs, which may be a fraction, as optimizer steps."""
    return round(epochs * steps_per_epoch)


def _positive(total: float) -> float:
    if total <= 0:
        raise ValueError(f"a schedule needs a positive total, got {total}")
    return total
