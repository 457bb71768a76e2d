"""The straightforward form of something against ours: seconds, memory, and the error between their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from esvit_pl.profiling.measure import peak_bytes, seconds


class Comparison(NamedTuple):
    """The straightforward form of something and ours, measured in one run."""

    part: str
    straight_seconds: float
    """Median of the repeats, of the straightforward form."""
    our_seconds: float
    """The same of ours."""
    ratio: float
    """Median over the repeats of straightforward / ours, each repeat compared within itself."""
    straight_bytes: int | None = None
    """Most memory held at once; None where it was not measured."""
    our_bytes: int | None = None
    """The same of ours."""

    bytes_ratio: float | None = None
    error: float | None = None
    """Largest relative difference between the two results."""


def compare(
    part: str,
    straight: Callable[[], Iterable[Tensor]],
    ours: Callable[[], Iterable[Tensor]],
    *,
    repeats: int,
    device: torch.device | str = "cpu",
    memory: bool = True,
) -> Comparison:
    """Run both forms once for the error, with equal random numbers, once for the memory if it is asked for, then
    `repeats` times in turn."""

    def seeded(form: Callable[[], Iterable[Tensor]]) -> Iterable[Tensor]:
        torch.manual_seed(0)
        return form()

    error = relative_error(seeded(ours), seeded(straight))
    held = [peak_bytes(form, device) if memory else None for form in (straight, ours)]
    pairs = [(seconds(straight, device), seconds(ours, device)) for _ in range(repeats)]
    return compared(part, pairs, held, error)


def compared(
    part: str, pairs: list[tuple[float, float]], held: Sequence[int | None] = (None, None), error: float | None = None
) -> Comparison:
    """From the (straightforward, ours) seconds of each repeat."""
    theirs, mine = zip(*pairs, strict=True)
    ratio = median(one / two for one, two in pairs)
    straight, ours = held
    saved = straight / ours if straight and ours else None
    return Comparison(part, median(theirs), median(mine), ratio, straight, ours, saved, error)


def relative_error(mine: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """Largest of |mine - wanted| / |wanted| (2-norms) over pairs of tensors."""
    return max(float((one - two).norm() / two.norm()) for one, two in zip(mine, wanted, strict=True))
