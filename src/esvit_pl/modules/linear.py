"""Linear classification of a frozen backbone's features."""

# b images of a batch | c channels | h, w rows and columns | d channels of a feature

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, cast

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from esvit_pl.backbones.interface import Backbone
from esvit_pl.callbacks.parts import need_labels
from esvit_pl.data import batch_size_of
from esvit_pl.evaluation.features import Unpack, unpack_batch
from esvit_pl.evaluation.linear import as_lrs, equal_heads
from esvit_pl.evaluation.names import linear_metrics
from esvit_pl.isolation import untracked
from esvit_pl.metrics.knn import TopK
from esvit_pl.optim import scaled_lr
from esvit_pl.precision import wide
from esvit_pl.schedules import cosine


class LinearProbe(LightningModule):
    """A linear classifier on the pooled features of the last blocks (docs/recipes.md, "Evaluation").

    SGD without weight decay, learning rate by the linear scaling rule, a cosine to 0 by epoch. ``trainer.max_epochs``
    is its length (100 in the paper). Several learning rates train as many heads side by side, from equal initial
    weights, on features that are computed once: each head ends as it would have alone. Logs ``linear/top1`` and
    ``linear/top5`` of the best head as fractions; with several also ``linear/lr<lr>/top1`` of each and
    ``linear/best_lr``. The best is chosen on the images that it is measured on, as the paper's sweep by hand does.

    For Lightning the backbone is no part of the module: it stays in eval mode, gets no gradient, and is in no
    checkpoint. A checkpoint holds the heads and, under ``linear_probe``, the backbone's spec and a fingerprint of its
    weights; it resumes with that backbone alone.

    Args:
        backbone: frozen; follows the module from device to device.
        num_classes: 2 or more.
        last_blocks: how many blocks' pooled features the classifier sees.
        lr: per 256 images of the global batch, one or several.
        momentum: of SGD.
        unpack: batch -> (images, labels).

    Raises:
        ValueError: settings or data that do not fit, before training.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None,
        *,
        last_blocks: int = 4,
        lr: float | Sequence[float] = 0.001,
        momentum: float = 0.9,
        unpack: Unpack = unpack_batch,
    ) -> None:
        super().__init__()
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"LinearProbe needs num_classes of 2 or more, got {num_classes}; it learns from labels: "
                "put the images into one folder for each class"
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"LinearProbe needs momentum of 0 or more and below 1, got {momentum}")
        self.num_classes = num_classes
        self.last_blocks = last_blocks
        self.lrs = as_lrs(lr)
        self.momentum = momentum
        self.unpack = unpack
        object.__setattr__(self, "backbone", backbone.eval())  # past nn.Module, which would make it a part
        self.heads = equal_heads(backbone.last_blocks_width(last_blocks), num_classes, len(self.lrs))
        self.accuracies = nn.ModuleList(_accuracies(num_classes) for _ in self.lrs)
        self.global_batch = 0

    def _apply(self, fn: Any, recurse: bool = True) -> LinearProbe:
        self.backbone._apply(fn, recurse)  # .to(), .cuda(), .double()
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b c h w) -> logits (b num_classes) of every head."""
        with untracked():
            features = self.backbone.last_blocks(x, self.last_blocks)  # (b d)
        return [head(features) for head in self.heads]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = self._labelled(batch)
        losses = torch.stack([F.cross_entropy(wide(logits), labels) for logits in self(images)])  # (heads,)
        loss = losses.detach().mean()
        self.log("linear/train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        self.log("linear/lr", self.lr_at(self.lrs[0], self.current_epoch), batch_size=len(labels))
        return losses.sum()  # no head's gradient reaches another

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = self._labelled(batch)
        for logits, accuracy in zip(self(images), self.accuracies, strict=True):
            cast(MetricCollection, accuracy).update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        results = {}
        for lr, accuracy in zip(self.lrs, self.accuracies, strict=True):
            collection = cast(MetricCollection, accuracy)
            results[lr] = TopK(**{name: float(value) for name, value in collection.compute().items()})
            collection.reset()
        self.log_dict(linear_metrics("linear", [(None, results)]), batch_size=1)

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def lr_at(self, lr: float, epoch: int) -> float:
        """Learning rate of a head in an epoch, from its rate per 256 images: the cosine reaches 0 after the last."""
        return cosine(epoch, self._epochs(), start=scaled_lr(lr, self.global_batch), end=0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"name": f"lr{lr:g}", "params": list(head.parameters()), "lr": lr}
            for lr, head in zip(self.lrs, self.heads, strict=True)
        ]
        return torch.optim.SGD(groups, lr=self.lrs[0], momentum=self.momentum, weight_decay=0.0)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for lr, group in zip(self.lrs, optimizer.param_groups, strict=True):
            group["lr"] = self.lr_at(lr, epoch)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def setup(self, stage: str) -> None:
        need_labels("LinearProbe", self.trainer)
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if classes is not None and classes != self.num_classes:
            raise ValueError(f"LinearProbe has num_classes={self.num_classes}, and the data have {classes} classes")
        if stage == "fit":
            self._epochs()

    def on_train_start(self) -> None:
        trainer = self.trainer
        self.global_batch = (
            batch_size_of(trainer.train_dataloader) * trainer.world_size * trainer.accumulate_grad_batches
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["linear_probe"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now, saved = self._identity(), checkpoint.get("linear_probe")
        if saved is None:
            raise ValueError("the checkpoint to resume from is none of a LinearProbe: it has no entry 'linear_probe'")
        differences = [f"{key}: checkpoint {saved[key]!r}, now {now[key]!r}" for key in now if saved[key] != now[key]]
        if differences:
            raise ValueError("the probe to resume has another backbone or other heads; " + "; ".join(differences))

    def _identity(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone.spec,
            "backbone_weights": fingerprint(self.backbone),
            "last_blocks": self.last_blocks,
            "num_classes": self.num_classes,
            "lr": self.lrs,
        }

    def _epochs(self) -> int:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(f"LinearProbe needs trainer.max_epochs, got {epochs}; the learning rate ends with it")
        return epochs

    def _labelled(self, batch: Any) -> tuple[Any, Tensor]:
        images, labels = self.unpack(batch)
        if labels is None:
            raise ValueError("LinearProbe needs labels, and the batch has none; give unpack= if it hides them")
        return images, labels


def _accuracies(num_classes: int) -> MetricCollection:
    """Top-1 and top-5 over all images; among fewer than five classes every answer is one of the first five."""
    tops = {"top1": 1, "top5": min(5, num_classes)}
    return MetricCollection(
        {name: MulticlassAccuracy(num_classes, top_k=top, average="micro") for name, top in tops.items()},
        compute_groups=False,
    )


def fingerprint(module: nn.Module) -> str:
    """A hash of all weights and buffers, the same on every device."""
    digest = blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
