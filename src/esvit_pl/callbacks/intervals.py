"""When a callback is due."""

from __future__ import annotations

from itertools import count
from typing import Any

FEW = 8
"""Numbered checkpoints that a training leaves at most, unless its interval is given."""


def check_interval(owner: str, every_n_epochs: int) -> None:
    if every_n_epochs < 1:
        raise ValueError(f"{owner} needs every_n_epochs of 1 or more, got {every_n_epochs}")


def is_due(trainer: Any, every_n_epochs: int) -> bool:
    """Whether the epoch that ends is one of every so many, or the last one."""
    epoch: int = trainer.current_epoch + 1
    return epoch % every_n_epochs == 0 or bool(epoch == trainer.max_epochs)


def checkpoint_interval(epochs: float) -> int:
    """Epochs between the numbered checkpoints of a training: 10, or the first of 20, 50, ... that leaves few files.

    >>> [checkpoint_interval(epochs) for epochs in (12, 80, 100, 300, 800)]
    [10, 10, 20, 50, 100]
    """
    intervals = (base * 10**power for power in count(1) for base in (1, 2, 5))
    return int(next(interval for interval in intervals if epochs // interval <= FEW))
