"""Where a GPU's time goes in a training step: its kernels by kind and one by one, and the time in which it waits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch.autograd import DeviceType

from esvit_pl.profiling.measure import seconds

KINDS = {
    "losses' kernels": r"^_attend$|^_add_gradient$",
    "attention": r"fmha|flash|[Aa]ttention",
    "convolutions": r"conv|cudnn|nchwToNhwc|nhwcToNchw",
    "matrix products": r"gemm|nvjet|cutlass|xmma|splitK|cublas|gemv",
    "optimizer and average": r"multi_tensor|FusedAdam|foreach|lpnorm",
    "compiled": r"^triton_",
    "copies": r"[Mm]emcpy|[Mm]emset|copy_kernel|CatArray",
    "norms": r"layer_norm|LayerNorm|GammaBeta|batch_norm",
    "reductions": r"reduce_kernel|softmax|SoftMax",
    "pointwise": r"elementwise|vectorized|unrolled|index|roll|scatter|gather|distribution|fill",
}
"""Kind -> which kernels' names are of it; the first that fits counts."""


class Kernel(NamedTuple):
    """One run of a kernel; times of one clock, in seconds."""

    name: str
    start: float
    end: float


class Row(NamedTuple):
    """A kind of kernels, or one kernel, in a step."""

    kernels: str
    launches: float
    """In a step."""
    step_seconds: float
    """In a step; kernels that run at the same time count each."""
    time_share: float
    """Of the step's time."""


def step_kernels(step: Callable[[], object], *, steps: int, device: torch.device | str) -> tuple[list[Kernel], float]:
    """All kernels of so many steps, and the seconds of a step that nobody watches (median).

    Args:
        step: takes one step; it is called three times before, to compile and to warm up.
    """
    for _ in range(3):
        step()
    alone = median(seconds(step, device) for _ in range(steps))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize(device)
    kernels = [
        Kernel(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation  # "Optimizer.step" is no kernel
    ]
    return kernels, alone


def kinds(kernels: Sequence[Kernel], *, steps: int, step_seconds: float) -> list[Row]:
    """A row for each kind, the longest first; then all of them, and what is left of the step: the GPU waits.

    Args:
        step_seconds: of a step that nobody watches; watching makes the host slower, not the kernels.

    >>> rows = kinds([Kernel("triton_a", 0, 1), Kernel("memset", 2, 3)], steps=1, step_seconds=4)
    >>> [(row.kernels, row.time_share) for row in rows]
    [('compiled', 0.25), ('copies', 0.25), ('all kernels', 0.5), ('the GPU waits', 0.5)]
    """
    rows = summed(((kind_of(kernel.name), kernel) for kernel in kernels), steps, step_seconds)
    busy = union(kernels) / steps
    waits = max(0.0, step_seconds - busy)
    return [
        *rows,
        Row("all kernels", len(kernels) / steps, busy, busy / step_seconds),
        Row("the GPU waits", 0, waits, waits / step_seconds),
    ]


def longest(kernels: Sequence[Kernel], *, steps: int, step_seconds: float, count: int = 25) -> list[Row]:
    """The kernels that take the most time, one by one."""
    return summed(((short(kernel.name), kernel) for kernel in kernels), steps, step_seconds)[:count]


def summed(named: Iterable[tuple[str, Kernel]], steps: int, step_seconds: float) -> list[Row]:
    """A row for each name, the longest first."""
    spent: dict[str, list[float]] = defaultdict(list)
    for name, kernel in named:
        spent[name].append(kernel.end - kernel.start)
    rows = [
        Row(name, len(each) / steps, sum(each) / steps, sum(each) / steps / step_seconds)
        for name, each in spent.items()
    ]
    return sorted(rows, key=lambda row: -row.step_seconds)


def union(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one kernel ran."""
    busy, until = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        busy += max(0.0, kernel.end - max(kernel.start, until))
        until = max(until, kernel.end)
    return busy


def kind_of(name: str) -> str:
    """One of `KINDS`, or "others"."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "others")


def short(name: str, length: int = 90) -> str:
    """A kernel's name without what a table cannot hold."""
    name = re.sub(r"^void |at::native::|\(anonymous namespace\)::|<unnamed>::|c10::|std::", "", name).replace("|", "/")
    return name if len(name) <= length else name[: length - 3] + "..."
