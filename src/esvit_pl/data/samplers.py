"""Which images come in which order, on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from esvit_pl.seeding import numpy_generator


class EpochSampler(Sampler[tuple[int, int]]):
    """The `(epoch, index)` pairs of one rank, in batches of `batch_size` one after the other.

    The order of an epoch is a pure function of (seed, epoch). Its length is cut to a multiple of the window,
    batch_size x ranks x accumulate, and is the same on every rank.

    >>> sampler = EpochSampler(100, batch_size=8, ranks=2, rank=0, accumulate=1, seed=0, start=lambda batches: (0, 0))
    >>> len(sampler), sampler.left_out
    (48, 4)

    Args:
        size: images in the data set.
        batch_size: images per process and micro-batch.
        ranks: number of processes.
        rank: this process.
        accumulate: micro-batches in one optimizer step.
        seed: of the order.
        start: called with the number of batches in an epoch at the start of every pass; gives (epoch, batch), where
            the pass begins.

    Raises:
        ValueError: there are fewer images than one window, or a window has none.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        ranks: int,
        rank: int,
        accumulate: int,
        seed: int,
        start: Callable[[int], tuple[int, int]],
    ) -> None:
        self.batch_size, self.ranks, self.rank, self.seed, self.start = batch_size, ranks, rank, seed, start
        self.size, self.window = size, batch_size * ranks * accumulate
        self.window_terms = (
            f"batch_size {batch_size} x {ranks} rank{'s' * (ranks != 1)} x {accumulate} accumulated "
            f"batch{'es' * (accumulate != 1)}"
        )
        if self.window < 1:
            raise ValueError(f"one step has {self.window} images ({self.window_terms}); each must be 1 or more")
        self.left_out = size % self.window
        if size < self.window:
            raise ValueError(
                f"one step needs {self.window} images ({self.window_terms}), and there are {size}: "
                f"lower batch_size to {max(size * batch_size // self.window, 1)} or less, or add images"
            )

    def __len__(self) -> int:
        """Images of this rank in a whole epoch."""
        return (self.size - self.left_out) // self.ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        batches = len(self) // self.batch_size
        epoch, first = self.start(batches)
        order = self.order(epoch)
        for batch in range(first, batches):
            at = (batch * self.ranks + self.rank) * self.batch_size
            yield from ((epoch, int(index)) for index in order[at : at + self.batch_size])

    def order(self, epoch: int) -> np.ndarray:
        """All images in the order of `epoch`; those that the epoch leaves out come last."""
        return numpy_generator(self.seed, epoch, "order").permutation(self.size)


class RankShare(Sampler[int]):
    """Every image once over all ranks, in order, without padding: rank, rank + ranks, rank + 2 ranks, ...

    >>> list(RankShare(7, rank=1, ranks=3))
    [1, 4]
    """

    def __init__(self, size: int, *, rank: int, ranks: int) -> None:
        self.indices, self.ranks = range(rank, size, ranks), ranks

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
