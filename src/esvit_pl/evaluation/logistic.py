"""Logistic regression on frozen features, solved to the end."""

# n images | d channels | c classes | o outputs: c, or 1 for two classes

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = 2**26
"""So many at once: a larger training set is gone through in parts, which add up to the same gradient."""


class LogisticModel(NamedTuple):
    """Weights that `fit_logistic` has found."""

    weight: Tensor
    """(o d)"""
    bias: Tensor
    """(o,)"""

    def probabilities(self, features: Tensor) -> Tensor:
        """(n d) -> (n c)"""
        logits = F.linear(features.to(self.weight), self.weight, self.bias)
        if logits.shape[1] > 1:
            return logits.softmax(1)
        return torch.cat([-logits, logits], dim=1).sigmoid()


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    C: float,  # noqa: N803 - the name that everybody knows from scikit-learn
    num_classes: int | None = None,
    start: LogisticModel | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    dtype: torch.dtype = torch.float64,
) -> LogisticModel:
    """The minimum of C times the sum of losses plus half the squared weights, which scikit-learn's LogisticRegression
    has, too.

    Several classes are one softmax, two classes one sigmoid; the bias is not penalised. L-BFGS sees all images in every
    step, on the device of `features`.

    >>> features, labels = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> model = fit_logistic(features, labels, C=1.0)
    >>> model.probabilities(features).argmax(1).tolist()
    [0, 0, 1, 1]

    Args:
        features: (n d).
        labels: (n,) classes, 0 and up.
        C: how much the losses weigh against the weights; a small one keeps the weights small.
        num_classes: c; by default the largest label, plus one.
        start: weights to begin with, those of another C.
        tolerance: the search ends when no entry of the gradient, divided by C and n, is larger.
        dtype: of the weights and of all sums.

    Raises:
        ValueError: C is not above 0, fewer than two classes, a feature is not finite, or lengths do not fit.
    """
    if not C > 0:
        raise ValueError(f"C must be above 0, got {C}")
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"features must be (n, d) and labels (n,), got {tuple(features.shape)}, {tuple(labels.shape)}")
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if classes < 2 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"logistic regression needs two classes or more, numbered from 0; {classes} were said, and labels go from "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    if not features.isfinite().all():
        raise ValueError("features must be finite, and some are not")
    outputs = classes if classes > 2 else 1
    weight, bias = (features.new_zeros(shape, dtype=dtype) for shape in ((outputs, features.shape[1]), (outputs,)))
    if start is not None:
        weight.copy_(start.weight)
        bias.copy_(start.bias)
    parts = list(zip(*(each.split(max(1, LOGITS_AT_ONCE // outputs)) for each in (features, labels)), strict=True))
    solver = torch.optim.LBFGS(
        [weight.requires_grad_(), bias.requires_grad_()],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        total = weight.square().sum() / (2 * C * len(labels))
        total.backward()
        for some, truth in parts:
            logits = F.linear(some.to(dtype), weight, bias)
            part = (
                F.cross_entropy(logits, truth, reduction="sum")
                if outputs > 1
                else F.binary_cross_entropy_with_logits(logits[:, 0], truth.to(dtype), reduction="sum")
            ) / len(labels)
            part.backward()
            total = total.detach() + part.detach()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return LogisticModel(weight.detach(), bias.detach())
