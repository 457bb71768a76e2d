"""Keys of earlier images, which a contrastive loss tells a new image from (MoCo, arXiv 1911.05722)."""

# s kinds of keys, each with a queue | k keys in a queue | p projection width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """Rings of the last keys, all of one length; random unit vectors at the start.

    Keys wait until the optimizer has stepped, so that all micro-batches of a step see the same queue.

    >>> queue = KeyQueue(length=4, dim=2)
    >>> queue.observe(torch.ones(1, 3, 2))  # in each micro-batch
    >>> queue.commit(queue.window())  # after the optimizer; the window is first gathered over ranks
    >>> int(queue.pointer), queue.keys[0, :3].unique().numel()
    (3, 1)

    Args:
        length: keys that a queue holds; a multiple of the global batch lets all of them be equally old when they leave.
        dim: p.
        number: queues.

    Attributes:
        keys: (s k p) buffer.
        pointer: buffer, the place of the next key.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int, *, number: int = 1) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue of keys needs a length of 1 or more, got {length}")
        start = torch.randn(number, length, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("keys", F.normalize(start, dim=-1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.reset()

    def observe(self, keys: Tensor) -> None:
        """Let the keys (s b p) of a micro-batch wait; they should have length 1."""
        self._waiting.append(keys.detach().transpose(0, 1))

    def window(self) -> Tensor:
        """(b s p): the keys since the last `commit`, one row for each image."""
        return torch.cat(self._waiting) if self._waiting else self.keys.new_zeros(0, *self.keys.shape[::2])

    @torch.no_grad()
    def commit(self, window: Tensor) -> None:
        """Put keys in the place of the oldest ones.

        Args:
            window: (all s p), the result of `window` on all ranks, in the order of images.

        Raises:
            ValueError: there are more keys than a queue holds.
        """
        length, new = self.keys.shape[1], len(window)
        if new > length:
            raise ValueError(
                f"the queue of keys (loss.queue_length) holds {length}, and one step brings {new}: make it a multiple "
                "of the global batch"
            )
        places = (self.pointer + torch.arange(new, device=window.device)) % length
        self.keys[:, places] = window.transpose(0, 1).to(self.keys.dtype)
        self.pointer.copy_((self.pointer + new) % length)
        self.reset()

    def reset(self) -> None:
        """Forget the keys that wait."""
        self._waiting: list[Tensor] = []  # no buffer: it is empty between optimizer steps
