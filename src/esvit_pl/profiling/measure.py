"""How every benchmark measures: seconds, bytes, and the machine they belong to."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def seconds(function: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Seconds that one call takes, until the device is done."""
    wait(device)
    start = perf_counter()
    function()
    wait(device)
    return perf_counter() - start


def wait(device: torch.device | str) -> None:
    """Until everything that was asked of the device is done."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


def peak_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes held at once inside `function` beyond those held before it.

    On a GPU the allocator's own count. Elsewhere the tensors', seen from outside: not what a kernel uses inside itself.
    """
    device = torch.device(device)
    if device.type != "cuda":
        with Live() as live:
            function()
        return int(live.peak)
    wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    wait(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a measurement belongs to: plain values, for people and for JSON."""
    device = torch.device(device)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), **gpu, "torch": torch.__version__}


def cpu_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Live(TorchDispatchMode):
    """Sees the result of every operation inside ``with``, and when its storage goes.

    Attributes:
        now: bytes of the storages that were made inside and are still there.
        peak: most of them at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in known:
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.grow(key, size)
        weakref.finalize(storage, self.gone, key, size)

    def grow(self, key: int, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def gone(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size
