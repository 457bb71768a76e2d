"""When a callback is due."""

from __future__ import annotations

from typing import Any


def check_interval(owner: str, every_n_epochs: int) -> None:
    if every_n_epochs < 1:
        raise ValueError(f"{owner} needs every_n_epochs of 1 or more, got {every_n_epochs}")


def is_due(trainer: Any, every_n_epochs: int) -> bool:
    """Whether the epoch that ends is one of every so many, or the last one."""
    epoch: int = trainer.current_epoch + 1
    return epoch % every_n_epochs == 0 or bool(epoch == trainer.max_epochs)
