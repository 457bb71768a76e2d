"""The running mean of the teacher's logits. Subtracting it keeps one prototype from winning for all images (DINO)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Center(nn.Module):
    """The centre (k,), an average of the teacher's logits that moves once per optimizer step.

    Since ``mean(W z) = W mean(z)``, only the sum of the projections z has to be collected during a step, and summed
    over ranks.

    >>> center = Center(num_prototypes=8, dim=4)
    >>> center.observe(torch.ones(2, 4), prototypes=torch.ones(8, 4))  # in each micro-batch
    >>> center.commit(center.window())  # after the optimizer; the window is first summed over ranks
    >>> round(center.value[0].item(), 3)  # 0.9 * 0 + 0.1 * 4
    0.4

    Attributes:
        value: (k,) buffer, 0 at the start.
    """

    value: Tensor
    # Not buffers: they are empty between optimizer steps, so no checkpoint needs them.
    _window: Tensor | None
    _prototypes: Tensor | None

    def __init__(self, num_prototypes: int, dim: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(num_prototypes))
        self.dim, self.momentum = dim, momentum
        self.reset()

    @torch.no_grad()
    def observe(self, z: Tensor, prototypes: Tensor) -> None:
        """Add the teacher's projections (... p) of a micro-batch, and remember its prototypes (k p) for `commit`."""
        rows = z.flatten(0, -2)
        window = torch.cat([rows.sum(0), rows.new_full((1,), rows.shape[0])])
        self._window = window if self._window is None else self._window + window
        self._prototypes = prototypes.detach()

    def window(self) -> Tensor:
        """(p + 1,): sum and number of the projections since the last `commit`; sums over ranks add up."""
        return self.value.new_zeros(self.dim + 1) if self._window is None else self._window

    @torch.no_grad()
    def commit(self, window: Tensor) -> None:
        """Move the centre, and start a new window.

        Args:
            window: (p + 1,), the result of `window`, summed over ranks.
        """
        if self._prototypes is not None:
            mean = window[:-1] / window[-1]
            logits = (self._prototypes.to(mean.dtype) @ mean).to(self.value.dtype)
            self.value.mul_(self.momentum).add_(logits, alpha=1 - self.momentum)
        self.reset()

    def reset(self) -> None:
        """Forget the projections since the last `commit`."""
        self._window = self._prototypes = None
