"""Counting memory without numbers: tensors that only say how large they are, and a ledger of what is alive."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from esvit_pl.profiling.measure import Live


class Fakes(FakeTensorMode):
    """Makes tensors without numbers that say they are on a device."""

    @cached_property
    def avoid_device_init(self) -> bool:
        return not torch.cuda.is_available()  # torch asks anew at every operation, which takes longer than the rest


class Ledger(Live):
    """Counts live storages by what they are for. A fake tensor that is asked for its value says 0.

    Args:
        grain: storages take whole multiples of so many bytes.
    """

    def __init__(self, grain: int = 1) -> None:
        super().__init__()
        self.grain = grain
        self.kinds: dict[int, str] = {}
        self.held = dict.fromkeys(("weights", "gradients", "optimizer", "views", "activations"), 0)
        self.at_peak = dict(self.held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0
        return super().__torch_dispatch__(func, types, args, kwargs)

    def enter(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what tensors are for; those made before the ledger was opened are counted from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.count(storage)
            key = storage._cdata
            self.held[self.kinds[key]] -= self.size(storage.nbytes())
            self.held[kind] += self.size(storage.nbytes())
            self.kinds[key] = kind

    def size(self, size: int) -> int:
        return -(-size // self.grain) * self.grain

    def grow(self, key: int, size: int) -> None:
        self.kinds[key] = "activations"
        self.held["activations"] += self.size(size)
        self.now += self.size(size)
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.held)

    def gone(self, key: int, size: int) -> None:
        super().gone(key, self.size(size))
        self.held[self.kinds.pop(key)] -= self.size(size)
