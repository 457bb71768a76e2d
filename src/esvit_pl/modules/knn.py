"""k-NN evaluation of a frozen backbone."""

# b images of a batch | c channels | h, w rows and columns | d channels of a feature

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning import LightningModule
from torch import nn

from esvit_pl.callbacks.parts import features_on_trainer, find_loader, need_labels
from esvit_pl.evaluation.features import Extracted, Unpack, extract_features, joined, unpack_batch
from esvit_pl.evaluation.knn import knn_accuracy_over_ranks
from esvit_pl.evaluation.names import knn_metrics
from esvit_pl.metrics.knn import as_ks, check_temperature


class KNNEvaluator(LightningModule):
    """Weighted k-NN accuracy of a frozen backbone (`metrics.knn`; docs/recipes.md, "Evaluation").

    ``trainer.validate(KNNEvaluator(backbone), datamodule)``: the images of ``datamodule.bank_dataloader()`` vote on
    those of the validation loader (`trainer.test`: of the test loader). Logs ``knn/top1`` and ``knn/top5`` as
    fractions, for the first k; further k as ``knn/k<k>/top1``.

    Args:
        backbone: images (b c h w) -> (b d) or ``Features``, whose pooled feature counts. Nothing in it changes but its
            mode, which is eval.
        k: voting neighbours, or several numbers of them.
        temperature: of the votes.
        unpack: batch -> (images, labels).
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        unpack: Unpack = unpack_batch,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.backbone = backbone.eval()
        self.k = as_ks(k)
        self.temperature = temperature
        self.unpack = unpack
        self.bank: Extracted | None = None
        self._query: list[Extracted] = []

    def setup(self, stage: str) -> None:
        need_labels("KNNEvaluator", self.trainer)
        find_loader("KNNEvaluator", self.trainer, self, "bank")

    def on_validation_start(self) -> None:
        loader = find_loader("KNNEvaluator", self.trainer, self, "bank")()
        self.bank = features_on_trainer(self.trainer, self.backbone, loader, self.unpack)
        self._query = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._query.append(extract_features(self.backbone, [batch], self.unpack))

    def on_validation_epoch_end(self) -> None:
        assert self.bank is not None
        accuracies, num_query = knn_accuracy_over_ranks(
            self.bank, joined(self._query, like=self.bank.features), k=self.k, temperature=self.temperature
        )
        self.log_dict(knn_metrics("knn", [(None, accuracies)]), batch_size=num_query)
        self.bank, self._query = None, []

    on_test_start, test_step, on_test_epoch_end = on_validation_start, validation_step, on_validation_epoch_end
