"""How fast a training loader gives batches when there is nothing else to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from esvit_pl.profiling.measure import seconds

WARM_UP, MEASURED = 2, 4
"""Batches of each process: first these, then those that are timed."""


def batches_needed(num_workers: int) -> int:
    """How many batches a loader must have for `loader_rate`."""
    return (WARM_UP + MEASURED) * max(num_workers, 1)


def loader_rate(loader: Iterable[Any], *, batch_size: int, num_workers: int) -> float:
    """Images a second of a loader.

    Its processes answer in turns, one batch each. Whole turns are counted, from the end of one to the end of another.

    Args:
        loader: of `batches_needed` batches.
        batch_size: images.
        num_workers: its processes.
    """
    at_once = max(num_workers, 1)
    batches = iter(loader)
    _exhaust(islice(batches, WARM_UP * at_once))
    return MEASURED * at_once * batch_size / seconds(lambda: _exhaust(batches))


def _exhaust(iterator: Iterator[Any]) -> None:
    """Take everything, keep nothing."""
    deque(iterator, maxlen=0)
