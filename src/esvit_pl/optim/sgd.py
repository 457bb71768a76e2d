"""torch's fused SGD, for parameters that join the training at different steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class FusedSGD(torch.optim.SGD):
    """torch's fused SGD with momentum, for parameters whose first gradients come at different steps.

    torch's own kernel wants the momentum of all parameters or of none, and fails where prototypes that stood still join
    the others. Here the momentum begins at 0, which computes the same: ``momentum * 0 + g`` is g.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> weight.grad = torch.tensor([0.5])
    >>> FusedSGD([weight], lr=1.0).step()
    >>> weight.data
    tensor([0.5000])
    """

    def __init__(self, params: Any, lr: float = 0.0, *, momentum: float = 0.9) -> None:
        super().__init__(params, lr, momentum, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        super().step()
        return loss
