"""Processes and threads that prepare images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.utils.data import get_worker_info


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_in_a_worker() -> AbstractContextManager[None]:
    """One thread, as loading processes have: sums over pixels must not come out differently without them."""
    return nullcontext() if get_worker_info() is not None else one_thread()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_workers() -> int:
    """Loading processes where nobody has chosen a number: one for each core, 8 at most."""
    return min(cores(), 8)
