"""Evaluators of a frozen encoder under a Trainer."""

from __future__ import annotations

from typing import Any, cast

from pytorch_lightning import LightningModule
from torch import nn

from esvit_pl.data import batch_size_of
from esvit_pl.evaluation.cache import FeatureCache
from esvit_pl.evaluation.data import EvaluationData, Training, place_of
from esvit_pl.evaluation.features import Unpack, unpack_batch
from esvit_pl.evaluation.interface import Evaluator
from esvit_pl.evaluation.loaders import find_loader, need_labels


class Evaluation(LightningModule):
    """An `Evaluator` under ``trainer.validate``: on its device, in its precision, on all its processes.

    The images of ``datamodule.bank_dataloader()`` are the bank, those of the validation loader the query
    (`trainer.test`: of the test loader); an evaluator that learns gets ``datamodule.train_dataloader()``. Everything
    that the evaluator answers is logged.

    >>> import torch
    >>> from esvit_pl.evaluation import KNN, RawPixels
    >>> Evaluation(RawPixels(side=8), KNN(k=5)).evaluator.k  # trainer.validate(Evaluation(...), datamodule)
    [5]

    Args:
        encoder: images (b c h w) -> (b d) or ``Features``. Nothing in it changes but its mode, which is eval.
        evaluator: what to ask.
        unpack: batch -> (images, labels).
        cache: of features; see `EvaluationData`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        evaluator: Evaluator,
        *,
        unpack: Unpack = unpack_batch,
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.evaluator = evaluator
        self.unpack = unpack
        self.cache = cache
        self.data: EvaluationData | None = None
        self._missing: list[Any] = []

    def setup(self, stage: str) -> None:
        if getattr(self.evaluator, "needs_labels", True):
            need_labels(type(self).__name__, self.trainer)
        self._loader("bank")

    def on_validation_start(self) -> None:
        trainer, module = self.trainer, getattr(self.trainer, "datamodule", None)
        splits = getattr(module, "dataset", None)
        self.data = EvaluationData(
            self._loader("bank"),
            lambda: cast(Any, trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders),
            train=self._training,
            pairs=getattr(module, "pairs_dataloader", None),
            num_classes=getattr(module, "num_classes", None),
            class_names=getattr(splits, "classes", None),
            metric=getattr(splits, "metric", "top1"),
            tuned_from=getattr(splits, "tuned_from", None),
            unpack=self.unpack,
            place=place_of(trainer),
            cache=self.cache,
        )
        self._missing = self.data.missing([self.encoder], "query", self.evaluator.reads)
        self.data.add(self.encoder, "query", [kind for _, kind in self._missing], [])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert self.data is not None
        self.data.add(self.encoder, "query", [kind for _, kind in self._missing], [batch])

    def on_validation_epoch_end(self) -> None:
        assert self.data is not None
        self.data.keep(self._missing, "query")
        self.log_dict(self.evaluator.run(self.encoder, self.data), batch_size=1)
        self.data = None

    on_test_start, test_step, on_test_epoch_end = on_validation_start, validation_step, on_validation_epoch_end

    def _loader(self, name: str) -> Any:
        return find_loader(type(self).__name__, self.trainer, self, name)

    def _training(self) -> Training:
        trainer, loader = self.trainer, self._loader("train")()
        accumulate = trainer.accumulate_grad_batches
        images = batch_size_of(loader) * trainer.world_size * accumulate
        asked = [getattr(getattr(trainer, "datamodule", None), name, None) for name in ("set_epoch", "hold_out")]
        return Training(loader, images, accumulate, *asked)
