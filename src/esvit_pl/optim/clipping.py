"""Clipping of each parameter's gradient by its own norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def clip_each_(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale every gradient to at most `max_norm`, by its own norm and not by the global one, in place (as released).

    Args:
        parameters: those without a gradient are passed over.
        max_norm: the largest norm that a gradient keeps; the divisor is norm + 1e-6.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_each_([weight], 1.0)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return
    norms = torch.stack(list(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, list((max_norm / (norms + 1e-6)).clamp_(max=1.0).unbind()))
