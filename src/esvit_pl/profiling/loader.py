"""How fast a training loader gives batches when there is nothing else to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from esvit_pl.profiling.measure import seconds

WARM_UP = 2
"""Batches of each process before those that are measured."""


def batches_needed(num_workers: int, rounds: int = 4) -> int:
    """How many batches a loader must have for `loader_rate`."""
    return (WARM_UP + rounds) * max(num_workers, 1)


def loader_rate(loader: Iterable[Any], *, batch_size: int, num_workers: int, rounds: int = 4) -> float:
    """Images a second of a loader.

    Its processes answer in turns, one batch each. Whole turns are counted, from the end of one to the end of another.

    Args:
        loader: of `batches_needed` batches.
        batch_size: images.
        num_workers: its processes.
        rounds: batches of each process that are measured.
    """
    at_once = max(num_workers, 1)
    batches = iter(loader)
    exhaust(islice(batches, WARM_UP * at_once))
    return rounds * at_once * batch_size / seconds(lambda: exhaust(batches))


def exhaust(iterator: Iterator[Any]) -> None:
    """Take everything, keep nothing."""
    deque(iterator, maxlen=0)
