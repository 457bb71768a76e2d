"""What processes tell one another: sums, means, gathers and exchanges. On one process each is the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def own_rows(number: int, *, device: torch.device) -> Tensor:
    """Where the `number` rows of this process lie among those of all processes (`gather_over_ranks`)."""
    return rank() * number + torch.arange(number, device=device)


def is_of_a_collective(error: BaseException) -> bool:
    """Whether an error says that this process has lost the others, in the middle of a sum or a gather."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of every rank's tensor (all of one shape). No gradient flows through it."""
    if num_ranks() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def max_over_ranks(x: Tensor) -> Tensor:
    """Element by element the largest of every rank's tensor (all of one shape). No gradient flows through it."""
    if num_ranks() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, dist.ReduceOp.MAX)
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


def gather_uneven(x: Tensor) -> Tensor:
    """(n ...) on each rank, n of any size -> (sum of n, ...) in the order of ranks: padded to the longest, then cut.

    A rank without any image may pass (0 0) where the others pass (n d).
    """
    sizes = gather_over_ranks(torch.tensor([[len(x), x[:1].numel()]], device=x.device))  # (ranks 2)
    if len(sizes) == 1:
        return x
    longest, width = int(sizes[:, 0].max()), int(sizes[:, 1].max())
    shape = (width,) if x.ndim > 1 else ()
    if len(x) == 0:
        x = x.new_zeros(0, *shape)
    padded = F.pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x)))
    parts = gather_over_ranks(padded).unflatten(0, (len(sizes), longest))
    return torch.cat([part[:size] for part, size in zip(parts, sizes[:, 0].tolist(), strict=True)])


def dealt_in_turn(number: int) -> list[int]:
    """Which row stands where, after the processes' parts were gathered: rank r has r, r + ranks, r + 2 ranks, ..."""
    return [row for first in range(num_ranks()) for row in range(first, number, num_ranks())]


def gather_in_turn(x: Tensor) -> Tensor:
    """`gather_uneven` of rows that were dealt in turn, in the order in which one process would have them."""
    gathered = gather_uneven(x)
    if num_ranks() == 1:
        return gathered
    return gathered[torch.tensor(dealt_in_turn(len(gathered)), device=x.device).argsort()]


def return_to_ranks(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """This rank's answers to the rows of all ranks -> (ranks n ...): all ranks' answers to this rank's n rows.

    Args:
        x: (sum of sizes, ...), in the order of ranks.
        sizes: n of each rank.
    """
    if num_ranks() == 1:
        return x[None]
    own = x.new_empty(num_ranks() * sizes[rank()], *x.shape[1:])
    dist.all_to_all_single(own, x.detach().contiguous(), [sizes[rank()]] * num_ranks(), list(sizes))
    return own.view(num_ranks(), sizes[rank()], *x.shape[1:])


def gather_with_gradient(x: Tensor) -> Tensor:
    """`gather_over_ranks` through which gradients flow back to every rank, for contrastive losses.

    A plain gather would cut the gradient of the other ranks' losses with respect to this rank's rows. Where each rank
    takes the mean of the losses of its own rows against all rows, and gradients are averaged over ranks (as DDP does),
    several ranks train exactly like one.
    """
    gathered: Tensor = x if num_ranks() == 1 else _Gather.apply(x)
    return gathered


def sum_with_gradient(x: Tensor) -> Tensor:
    """`sum_over_ranks` through which gradients flow back to every rank, for batch norm over the rows of all ranks."""
    total: Tensor = x if num_ranks() == 1 else _Sum.apply(x)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return sum_over_ranks(grad)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return sum_over_ranks(grad).chunk(num_ranks())[rank()]
