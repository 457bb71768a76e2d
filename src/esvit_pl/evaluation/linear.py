"""Linear classifiers of frozen features: a probe that trains them, and heads that learn beside a training."""

# n images, b of a batch | d channels | c classes | h heads

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.distributed import num_ranks, sum_over_ranks
from esvit_pl.evaluation.accuracy import accuracies_over_ranks, count_correct
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.features import Unpack, needed_labels
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.evaluation.names import linear_metrics
from esvit_pl.isolation import same_random_state, untracked
from esvit_pl.optim import scaled_lr
from esvit_pl.precision import wide
from esvit_pl.schedules import cosine

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


def sgd(heads: nn.ModuleList, lrs: Sequence[float], momentum: float) -> torch.optim.SGD:
    """SGD without weight decay, one group with its own learning rate for each head."""
    groups = [
        {"name": f"lr{lr:g}", "params": list(head.parameters()), "lr": lr} for lr, head in zip(lrs, heads, strict=True)
    ]
    return torch.optim.SGD(groups, lr=lrs[0], momentum=momentum)


class Linear(Evaluator):
    """Accuracy of linear classifiers trained on a backbone's frozen features (docs/recipes.md, "Evaluation").

    They see the pooled features of the last blocks of augmented training images. SGD without weight decay, learning
    rate by the linear scaling rule, a cosine to 0 by epoch. Several learning rates train as many heads side by side,
    from equal initial weights, on features that are computed once: each head ends as it would have alone.
    ``linear/top1`` and ``linear/top5`` are the best head's fractions of right answers on the query; of several heads
    also ``linear/lr<lr>/top1`` of each, and ``linear/best_lr``. The best is chosen on the images that it is measured
    on, as the paper's sweep by hand does.

    `modules.LinearProbe` is the same under a Trainer: with its loggers, its checkpoints and resuming. Both end with
    the same weights.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, Linear, RawPixels, Training
    >>> images, labels = torch.eye(12).reshape(12, 3, 2, 2), torch.arange(12) % 3
    >>> data = EvaluationData(
    ...     query=[(images, labels)], train=lambda: Training([(images, labels)], images_per_step=12), num_classes=3
    ... )
    >>> Linear(epochs=20, lr=300.0).run(RawPixels(side=2), data)["linear/top1"]
    1.0

    Args:
        last_blocks: how many blocks' pooled features the classifiers see.
        lr: per 256 images of a step on all ranks, one or several.
        momentum: of SGD.
        epochs: length of the training.
        seed: of the initial weights.
    """

    trains = True

    def __init__(
        self,
        *,
        last_blocks: int = 4,
        lr: float | Sequence[float] = 0.001,
        momentum: float = 0.9,
        epochs: int = 100,
        seed: int = 0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"a linear probe needs momentum of 0 or more and below 1, got {momentum}")
        if epochs < 1:
            raise ValueError(f"a linear probe needs epochs of 1 or more, got {epochs}")
        self.last_blocks = last_blocks
        self.lrs = as_lrs(lr)
        self.momentum = momentum
        self.epochs = epochs
        self.seed = seed

    @property
    def reads(self) -> tuple[Kind, ...]:
        return (self.last_blocks,)

    def check(self, encoder: Any, num_classes: int | None) -> None:
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"a linear probe needs num_classes of 2 or more, got {num_classes}; it learns from labels: "
                "put the images into one folder for each class"
            )
        encoder.last_blocks_width(self.last_blocks)  # raises where there are not so many blocks

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        heads = self.train(encoder, data)
        right = torch.zeros(len(heads), 2, dtype=torch.float64, device=data.place.device)
        images = 0
        for features, labels in data.batches(encoder, "query", self.last_blocks):
            labels = needed_labels("a linear probe", labels, "the batches of the query have none")
            with torch.no_grad(), data.place.forward_context():
                right += torch.stack([count_correct(logits, labels) for logits in logits_of(heads, features)])
            images += len(labels)
        accuracies = dict(zip(self.lrs, accuracies_over_ranks(right, images), strict=True))
        return linear_metrics("linear", [(None, accuracies)])

    def train(self, encoder: Any, data: EvaluationData) -> nn.ModuleList:
        """The heads, trained."""
        self.check(encoder, data.num_classes)
        assert data.num_classes is not None
        place, training = data.place, data.training
        with torch.inference_mode(False), torch.enable_grad():  # Lightning evaluates in inference mode
            with same_random_state():
                torch.manual_seed(self.seed)
                width = encoder.last_blocks_width(self.last_blocks)
                heads = place.module(equal_heads(width, data.num_classes, len(self.lrs)))
            optimizer, scaler = sgd(heads, self.lrs, self.momentum), place.scaler()
            for epoch in range(self.epochs):
                if training.set_epoch is not None:
                    training.set_epoch(epoch)
                optimizer.zero_grad()  # of batches that were too few for a step
                self.set_lrs(optimizer, epoch, self.epochs, training.images_per_step)
                for number, batch in enumerate(training.loader, start=1):
                    images, labels = labelled(data.unpack, place.prepare(batch))
                    with place.forward_context():
                        losses = self.losses(heads, self.features(encoder, images), labels)
                    scaler.scale(losses.sum() / training.accumulate).backward()
                    if number % training.accumulate == 0:
                        _average_gradients_over_ranks(heads)
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
        return heads

    def features(self, encoder: Any, images: Any) -> Tensor:
        """(b c h w) -> (b d), without gradients."""
        with untracked():
            features: Tensor = encoder.last_blocks(images, self.last_blocks)
        return features

    def losses(self, heads: nn.ModuleList, features: Tensor, labels: Tensor) -> Tensor:
        """Cross entropies of the heads, (h,). No head's gradient reaches another."""
        return torch.stack([F.cross_entropy(wide(logits), labels) for logits in logits_of(heads, features)])

    def lr_at(self, lr: float, epoch: int, epochs: int, images_per_step: int) -> float:
        """Learning rate in an epoch, from the one per 256 images: a cosine that reaches 0 after the last epoch."""
        return cosine(epoch, epochs, start=scaled_lr(lr, images_per_step), end=0.0)

    def set_lrs(self, optimizer: torch.optim.Optimizer, epoch: int, epochs: int, images_per_step: int) -> None:
        """Set each head's learning rate for an epoch."""
        for lr, group in zip(self.lrs, optimizer.param_groups, strict=True):
            group["lr"] = self.lr_at(lr, epoch, epochs, images_per_step)


def logits_of(heads: nn.ModuleList, features: Tensor) -> list[Tensor]:
    """(n d) -> h logits (n c), in the heads' own precision."""
    features = features.to(next(heads.parameters()).dtype)
    return [head(features) for head in heads]


def labelled(unpack: Unpack, batch: Any) -> tuple[Any, Tensor]:
    """(images, labels) of a batch that must have labels."""
    images, labels = unpack(batch)
    return images, needed_labels("a linear probe", labels, "the batch has none")


class LinearHeads(nn.Module):
    """One linear classifier for each learning rate, on the same features, from equal initial weights.

    `learn_` is their step: SGD with momentum, without weight decay.

    >>> import torch
    >>> heads = LinearHeads(width=3, num_classes=3, lrs=[1.0, 100.0])
    >>> for _ in range(20):
    ...     learn_([heads], [torch.eye(3)], torch.arange(3))
    >>> heads.correct(torch.eye(3), torch.arange(3))[1].tolist()  # first; among the first five
    [3.0, 3.0]

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
        self.optimizer = sgd(self.heads, self.lrs, momentum)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(n d) -> h logits (n c)."""
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """Numbers of right answers of each head, (h 2) float64: `count_correct`."""
        return torch.stack([count_correct(logits, labels) for logits in self(features)])

    def saved_state(self) -> dict[str, Any]:
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
    for parameter, grad in zip(parameters, _summed_over_ranks(grads), strict=True):
        parameter.grad = grad / IMAGES_PER_LR
    for part in heads:
        part.optimizer.step()
        part.optimizer.zero_grad(set_to_none=True)


def _average_gradients_over_ranks(module: nn.Module) -> None:
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if num_ranks() > 1:
        for grad, mean in zip(grads, _summed_over_ranks([grad / num_ranks() for grad in grads]), strict=True):
            grad.copy_(mean)


def _summed_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """By one all-reduce."""
    total = sum_over_ranks(torch.cat([x.flatten() for x in tensors]))
    parts = total.split([x.numel() for x in tensors])
    return [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]
