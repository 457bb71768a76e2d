"""``python -m esvit_pl.benchmarks.vil``: what ViL's sliding attention costs against a full one as the map grows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esvit_pl.backbones.vil_attention import FullAttention, SlidingAttention


class Cost(NamedTuple):
    """Of one attention, forward and backward, with a relative position bias."""

    form: str
    """ "full", or "sliding" with its mode."""
    side: int
    """Of the map, in tokens."""
    seconds: float
    """Median of the repeats."""
    peak_bytes: int
    """Most memory that the tensors of a pass held at once."""


def attention_costs(
    *,
    sides: tuple[int, ...] = (14, 28, 56),
    dim: int = 96,
    num_heads: int = 3,
    window: int = 7,
    batch_size: int = 2,
    repeats: int = 3,
) -> list[Cost]:
    """Costs of ViL's sliding attention in its modes, and of a full attention, whose bias is made for the very map.

    Args:
        sides: of square maps, in tokens.
        dim, num_heads: of the attention; the first stage of `vil_tiny` has 96 and 3.
        window: side of a chunk.
        batch_size: images.
        repeats: passes measured, after one to warm up.
    """
    costs = []
    for side in sides:
        torch.manual_seed(0)
        attentions: dict[str, torch.nn.Module] = {"full": FullAttention(dim, num_heads, native=side)}
        for mode in (0, 1, -1):
            attentions[f"sliding, mode {mode}"] = SlidingAttention(dim, num_heads, side=window, mode=mode)
        x = torch.randn(batch_size, 1 + side * side, dim, requires_grad=True)
        for form, attention in attentions.items():

            def run(attention: torch.nn.Module = attention, side: int = side, x: torch.Tensor = x) -> None:
                attention(x, (side, side)).square().sum().backward()

            costs.append(Cost(form, side, _seconds(run, repeats), peak_bytes(run)))
    return costs


def peak_bytes(function: Callable[[], None]) -> int:
    """Most bytes that the tensors made inside `function` held at once; not what a kernel uses inside itself."""
    with _Live() as live:
        function()
    return live.peak


class _Live(TorchDispatchMode):
    """Sees the result of every operation, and when its storage goes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor):
                self.count(tensor.untyped_storage(), known)
        return result

    def count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self.storages:
            return
        self.storages.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size


def _seconds(function: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return median(seconds[1:])


if __name__ == "__main__":
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU; 96 channels, 3 heads, chunks of 7, batch 2"
    )
    print("forward and backward; memory is the most that its tensors held at once")
    for cost in attention_costs():
        tokens = f"{cost.side} x {cost.side}"
        print(f"{tokens:>9}  {cost.form:<18}{1000 * cost.seconds:8.0f} ms{cost.peak_bytes / 2**20:9.0f} MiB")
