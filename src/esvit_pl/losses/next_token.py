"""The loss of iGPT: what comes next in a sequence."""

# b sequences | n tokens | k classes

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from esvit_pl.precision import wide


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean over sequences and tokens of -log p(token), in nats.

    Args:
        logits: (b n k); row i was made without token i and what follows it.
        tokens: (b n) long.

    >>> import torch
    >>> round(float(next_token_loss(torch.zeros(1, 2, 512), torch.tensor([[3, 5]]))), 4)  # ln 512
    6.2383
    """
    return F.cross_entropy(wide(logits).flatten(0, 1), tokens.flatten())
