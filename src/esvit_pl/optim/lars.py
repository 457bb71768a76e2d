"""LARS: stochastic gradient descent with one learning rate for each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al., arXiv 1708.03888), as released.

    Parameters of two and more dimensions: ``g += weight_decay * p``, then ``g *= trust * |p| / |g|`` (1 where a norm is
    0). One-dimensional ones: neither. Then ``buffer = momentum * buffer + g`` and ``p -= lr * buffer``. With
    `rate_inside` it is ``buffer = momentum * buffer + lr * g`` and ``p -= buffer`` (SimCLR); the two differ while the
    learning rate moves.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: share of the old buffer in the new one.
        weight_decay: see above.
        trust: the trust coefficient.
        rate_inside: see above.
        adapts_all: one-dimensional parameters are treated like the others (SwAV).

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> weight.grad = torch.tensor([[0.0, 1.0]])
    >>> LARS([weight], lr=1.0, trust=0.1).step()
    >>> weight.data
    tensor([[3.0000, 3.5000]])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        rate_inside: bool = False,
        adapts_all: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})
        self.rate_inside, self.adapts_all = rate_inside, adapts_all

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim > 1 or self.adapts_all:
            grad = grad.add(parameter, alpha=group["weight_decay"])
            size, slope = parameter.norm(), grad.norm()
            trust = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, torch.ones_like(size))
            grad = grad * trust
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        inside, outside = (group["lr"], 1.0) if self.rate_inside else (1.0, group["lr"])
        buffer.mul_(group["momentum"]).add_(grad, alpha=inside)
        parameter.add_(buffer, alpha=-outside)
