"""Linear classification of a frozen backbone's features."""

# b images of a batch | c channels | h, w rows and columns | d channels of a feature

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone
from esvit_pl.data import batch_size_of
from esvit_pl.evaluation.accuracy import accuracies_over_ranks, count_correct
from esvit_pl.evaluation.data import place_of
from esvit_pl.evaluation.features import Unpack, unpack_batch
from esvit_pl.evaluation.linear import Linear, labelled, rehearsal
from esvit_pl.evaluation.loaders import need_labels
from esvit_pl.evaluation.names import PROBE_LOSS, probe_metrics
from esvit_pl.fingerprint import fingerprint
from esvit_pl.metrics.knn import TopK


class LinearProbe(LightningModule):
    """A linear classifier on the pooled features of the last blocks: `evaluation.Linear` under a Trainer.

    With the Trainer's loggers and checkpoints, a validation loop, and resuming. ``trainer.max_epochs`` is its length
    (100 in the paper). Logs ``linear/top1`` and ``linear/top5`` as fractions. Of several classifiers it is the one that
    was chosen on a part of the training images, if the data module has `hold_out`, as `ImageDataModule` does; all
    metrics are explained in `evaluation.Linear`.

    Lightning does not see the backbone as a part of the module: it stays in eval mode, gets no gradient, and is in no
    checkpoint. A checkpoint holds the heads and, under ``linear_probe``, the backbone's spec and a fingerprint of its
    weights; it resumes with that backbone alone.

    >>> import esvit_pl
    >>> backbone = esvit_pl.build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], img_size=32)
    >>> module = LinearProbe(backbone, num_classes=10, last_blocks=2, lr=[0.01, 0.1])  # trainer.fit(module, data)

    Args:
        backbone: frozen; follows the module from device to device.
        num_classes: 2 or more.
        last_blocks: how many blocks' pooled features the classifier sees, one number or several.
        pooling: of the last block, one or several, as in `evaluation.Linear`.
        lr: per 256 images of the global batch, one or several.
        momentum: of SGD.
        held_out: share of each class of the training images on which one of several classifiers is chosen.
        seed: of these images.
        unpack: batch -> (images, labels).

    Raises:
        ValueError: settings or data that do not fit, before training.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None,
        *,
        last_blocks: int | Sequence[int] = 4,
        pooling: str | Sequence[str] = "pooled",
        lr: float | Sequence[float] = 0.001,
        momentum: float = 0.9,
        held_out: float = 0.1,
        seed: int = 0,
        unpack: Unpack = unpack_batch,
    ) -> None:
        super().__init__()
        how: dict[str, Any] = {"pooling": pooling, "lr": lr, "momentum": momentum, "held_out": held_out, "seed": seed}
        self.linear = Linear(last_blocks=last_blocks, **how)
        self.linear.check(backbone, num_classes)
        assert num_classes is not None
        self.num_classes = num_classes
        self.unpack = unpack
        self.backbone: Backbone
        object.__setattr__(self, "backbone", backbone.eval())  # past nn.Module, which would make it a part
        self.candidates = self.linear.candidates(backbone, num_classes)
        self.images_per_step = 0
        self._away: Tensor | None = None
        self._held_out: Any = None
        self._right: list[Tensor] = []
        self._images = 0

    @property
    def heads(self) -> nn.ModuleList:
        """The linear layers, one for each choice of blocks, pooling and learning rate."""
        return self.candidates.heads

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.backbone._apply(fn, recurse)  # type: ignore[no-untyped-call]  # .to(), .cuda(), .double()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b c h w) -> logits (b num_classes) of every classifier."""
        logits: list[Tensor] = self.candidates(self.linear.features(self.backbone, x))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = labelled(self.unpack, batch)
        away = None if self._away is None else self._away[batch["index"]]
        losses = self.candidates.losses(self.linear.features(self.backbone, images), labels, away)
        loss = losses.detach()[: len(self.heads)].mean()
        self.log(PROBE_LOSS, loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        lr = self.linear.lr_at(self.linear.lrs[0], self.current_epoch, self._epochs(), self.images_per_step)
        self.log("linear/lr", lr, batch_size=len(labels))
        return losses.sum()

    def on_validation_epoch_start(self) -> None:
        self._right, self._images = [], 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = labelled(self.unpack, batch)
        self._right.append(torch.stack([count_correct(logits, labels) for logits in self(images)]))
        self._images += len(labels)

    def on_validation_epoch_end(self) -> None:
        right = torch.zeros(len(self.heads), 2, dtype=torch.float64, device=self.device)
        accuracies = accuracies_over_ranks(sum(self._right, right), self._images)
        rehearsed = None if self._away is None else self._rehearsal()
        self.log_dict(probe_metrics(self.candidates.choices, accuracies, rehearsed), batch_size=1)

    def _rehearsal(self) -> list[TopK]:
        place = place_of(self.trainer)
        pairs = (labelled(self.unpack, place.prepare(batch)) for batch in self._held_out)
        part = ((self.linear.features(self.backbone, images), labels, None) for images, labels in pairs)
        return rehearsal(self.candidates, part, place)

    on_test_epoch_start, test_step, on_test_epoch_end = (
        on_validation_epoch_start,
        validation_step,
        on_validation_epoch_end,
    )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.candidates.optimizer(self.linear.momentum)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.linear.set_lrs(optimizer, epoch, self._epochs(), self.images_per_step)
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
        batches = trainer.world_size * trainer.accumulate_grad_batches
        self.images_per_step = batch_size_of(trainer.train_dataloader) * batches
        hold_out = getattr(getattr(trainer, "datamodule", None), "hold_out", None)
        if self.candidates.rehearses and hold_out is not None:
            away, self._held_out = hold_out(self.linear.held_out, self.linear.seed)
            self._away = away.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["linear_probe"] = self._identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now, saved = self._identity(), checkpoint.get("linear_probe")
        if saved is None:
            raise ValueError(
                "the checkpoint to resume from does not come from a LinearProbe: it has no entry 'linear_probe'"
            )
        differences = [
            f"{key}: checkpoint {saved.get(key)!r}, now {now.get(key)!r}"
            for key in {**now, **saved}
            if saved.get(key) != now.get(key)
        ]
        if differences:
            raise ValueError("the probe to resume has another backbone or other heads; " + "; ".join(differences))

    def _identity(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone.spec,
            "backbone_weights": fingerprint(self.backbone),
            "last_blocks": self.linear.blocks,
            "num_classes": self.num_classes,
            "lr": self.linear.lrs,
            **({"pooling": self.linear.poolings} if self.linear.beside else {}),  # older files have none
            "held_out": self.linear.held_out,
            "seed": self.linear.seed,
        }

    def _epochs(self) -> int:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(f"LinearProbe needs trainer.max_epochs, got {epochs}; the learning rate ends with it")
        return epochs
