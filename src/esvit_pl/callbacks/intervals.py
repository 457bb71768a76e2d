"""When a callback is due."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

FEW = 7
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
    [10, 20, 20, 50, 200]
    """
    intervals = (base * 10**power for power in count(1) for base in (1, 2, 5))
    return int(next(interval for interval in intervals if epochs // interval <= FEW))


class Every(NamedTuple):
    """How often something is done; 0 for a unit that does not count.

    >>> Every.of(["10min", "1epoch"])
    Every(steps=0, seconds=600, epochs=1)
    """

    steps: int = 0
    seconds: int = 0
    epochs: int = 0

    @classmethod
    def of(cls, words: str | Sequence[str]) -> Every:
        """
        Args:
            words: ``500steps``, ``30s``, ``10min``, ``2h``, ``1epoch``; or several of them.

        Raises:
            ValueError: a word is something else.
        """
        found = {}
        for word in [words] if isinstance(words, str) else words:
            match = re.fullmatch(r"([1-9][0-9]*) ?(steps?|s|min|h|epochs?)", str(word))
            if match is None:
                raise ValueError(f"every must be such as 500steps, 10min, 2h or 1epoch, or several of them, got {word}")
            unit, times = _UNITS[match[2].removesuffix("s") or "s"]
            found[unit] = times * int(match[1])
        return cls(**found)


_UNITS = {
    "step": ("steps", 1),
    "epoch": ("epochs", 1),
    "s": ("seconds", 1),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
}
