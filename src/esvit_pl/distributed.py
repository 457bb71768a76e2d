"""The three collectives that this library needs; on one process each is the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of every rank's tensor (all of one shape). No gradient flows through it."""
    if num_ranks() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of every rank's tensor (all of one shape). No gradient flows through it."""
    return sum_over_ranks(x) / num_ranks()


def gather_over_ranks(x: Tensor) -> Tensor:
    """(n ...) on each rank, n equal everywhere -> (ranks * n ...), in the order of ranks. No gradient flows."""
    if num_ranks() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(num_ranks())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)
