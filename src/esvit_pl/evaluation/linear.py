"""Linear classifiers that learn side by side on features that come from elsewhere."""

# n images | d channels | c classes | h heads

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.distributed import sum_over_ranks

IMAGES_PER_LR = 256
"""A learning rate is given for so many images (the linear scaling rule, Goyal et al., arXiv 1706.02677)."""


def equal_heads(width: int, num_classes: int, count: int) -> nn.ModuleList:
    """`count` linear layers (d -> c) of equal initial weights: normal with std 0.01, drawn once from torch's generator;
    biases are 0."""
    first = nn.Linear(width, num_classes)
    nn.init.normal_(first.weight, std=0.01)
    nn.init.zeros_(first.bias)
    return nn.ModuleList(copy.deepcopy(first) for _ in range(count))


def as_lrs(lr: float | Sequence[float]) -> list[float]:
    """One learning rate or several -> a list.

    Raises:
        ValueError: none, two equal ones, or one that is not above 0.
    """
    lrs = [float(lr)] if isinstance(lr, (int, float)) else [float(value) for value in lr]
    if not lrs or min(lrs) <= 0 or len(set(lrs)) < len(lrs):
        raise ValueError(f"linear heads need one lr or several different ones, above 0, got {lr}")
    return lrs


class LinearHeads(nn.Module):
    """One linear classifier for each learning rate, on the same features, from equal initial weights.

    `learn_` is their step: SGD with momentum, without weight decay.

    Args:
        width: d.
        num_classes: c, 2 or more.
        lrs: per 256 images.
        momentum: of SGD.
        like: a tensor of the type and on the device that the heads should have; weights are drawn on the CPU and in
            float32, so that they are the same everywhere.
    """

    def __init__(
        self, width: int, num_classes: int, lrs: Sequence[float], *, momentum: float = 0.9, like: Tensor | None = None
    ) -> None:
        super().__init__()
        self.width, self.num_classes, self.lrs = width, num_classes, list(lrs)
        self.heads = equal_heads(width, num_classes, len(self.lrs))
        if like is not None:
            self.heads.to(like)
        groups = [
            {"name": f"lr{lr:g}", "params": list(head.parameters()), "lr": lr}
            for lr, head in zip(self.lrs, self.heads, strict=True)
        ]
        self.optimizer = torch.optim.SGD(groups, lr=self.lrs[0], momentum=momentum)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(n d) -> h logits (n c)."""
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """Numbers of right answers, (h 2) float64: the true class is the first, is among the first five.

        Sums, so that ranks can be added up. With fewer than five classes all of them are "the first five".
        """
        hits = [logits.topk(min(5, self.num_classes)).indices == labels[:, None] for logits in self(features)]
        return torch.stack([torch.stack([hit[:, 0].sum(), hit.sum()]) for hit in hits]).double()

    def everything(self) -> dict[str, Any]:
        """Weights and the optimizer's state; `restore_` goes on from them bit for bit."""
        return {"heads": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore_(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])


def learn_(heads: Sequence[LinearHeads], features: Sequence[Tensor], labels: Tensor) -> None:
    """One step of every head, on the images of all ranks, with one all-reduce for all of them.

    A head's gradient is the sum over all images of the gradient of the cross entropy, divided by 256: its learning
    rate is per 256 images, and ranks may have any numbers of images. No gradient reaches the features.

    Args:
        heads: one entry for each kind of features.
        features: for each entry (n d), this rank's.
        labels: (n,) long, this rank's; nothing is learnt from an image with label -1.
    """
    parameters = [parameter for part in heads for parameter in part.parameters()]
    with torch.enable_grad():
        losses = [
            F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
            for part, x in zip(heads, features, strict=True)
            for logits in part(x.detach())
        ]
        grads = torch.autograd.grad(losses, parameters)  # of their sum; no head's gradient reaches another
    total = sum_over_ranks(torch.cat([grad.flatten() for grad in grads])) / IMAGES_PER_LR
    for parameter, grad in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter)
    for part in heads:
        part.optimizer.step()
        part.optimizer.zero_grad(set_to_none=True)
