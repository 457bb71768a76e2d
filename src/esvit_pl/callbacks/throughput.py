"""How fast a training runs, and how much of its time it waits for data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from pytorch_lightning import Callback
from torch import Tensor


class Throughput(Callback):
    """Logs ``time/images_per_second`` (of all processes) and ``time/data_wait_share`` (0-1) for every epoch.

    >>> import torch
    >>> throughput = Throughput()  # Trainer(callbacks=[throughput])
    >>> throughput.count({"views": [torch.zeros(8, 3, 32, 32)]})
    8

    Time is measured from the start of the epoch to the end of its last batch; validation and what follows the epoch do
    not count. Between the end of a batch and the start of the next, the process waits for data. If the share of that
    time is near 0, the loader keeps up; if it is large, more workers may help.

    Args:
        count: batch -> number of images; by default the length of the first tensor in it.
    """

    def __init__(self, count: Callable[[Any], int] | None = None) -> None:
        self.count = count or batch_length
        self._reset()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._reset()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = perf_counter()
        self._waited += now - self._mark
        self._busy_since = now

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._mark = perf_counter()
        self._worked += self._mark - self._busy_since
        self._images += self.count(batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._mark = perf_counter()  # validation in the middle of an epoch is neither work nor waiting

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        images, seconds = self._images * trainer.world_size, self._worked + self._waited
        rates = {"images_per_second": images, "data_wait_share": self._waited}
        for name, amount in rates.items():
            value = amount / seconds if seconds > 0 else 0.0
            pl_module.log(f"time/{name}", value, on_step=False, on_epoch=True, batch_size=1)

    def _reset(self) -> None:
        self._images, self._worked, self._waited = 0, 0.0, 0.0
        self._mark = self._busy_since = perf_counter()


def batch_length(batch: Any) -> int:
    """Length of the first tensor in a batch, at any depth; 0 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((length for part in parts if (length := batch_length(part))), 0)
