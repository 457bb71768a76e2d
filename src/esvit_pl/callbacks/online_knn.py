"""k-NN accuracy of a network while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from esvit_pl.callbacks.lookup import Part, find_part
from esvit_pl.callbacks.online import OnlineEvaluation
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.features import Unpack, unpack_batch
from esvit_pl.evaluation.knn import KNN, BankDtype


class OnlineKNN(OnlineEvaluation):
    """Weighted k-NN (`evaluation.KNN`) of frozen features at the end of an epoch, in any Lightning module.

    Logs ``knn/top1`` and ``knn/top5`` as fractions, before ModelCheckpoint and EarlyStopping look; further features
    and k as ``knn/<feature>/k<k>/top1``. Training is bit-identical with and without it: weights, modes, random
    generators and ``global_step`` are left as they were.

    >>> from esvit_pl.callbacks import OnlineKNN
    >>> from pytorch_lightning import Trainer
    >>> trainer = Trainer(callbacks=[OnlineKNN("encoder", bank="train", query="val")], logger=False)

    Args:
        features: what to measure: the path of a network in the module, or a function images -> (b d) or ``Features``;
            several as a dict {name: path or function}, the main one first.
        bank: images with labels that vote: a loader, or a name: "bank" is ``datamodule.bank_dataloader()``.
        query: images to classify, likewise. Any loader of a foreign project will do ("train", "val").
        k: number of voting neighbours, or several, the main one first.
        temperature: of the votes.
        bank_dtype: in which the bank is kept: float32, float16 or bfloat16.
        every_n_epochs: measure after so many epochs, and after the last one.
        unpack: batch -> (images, labels); tuples (image, label) and dicts with "image" and "label" need none.
        prefix: of the metrics' names; two of these callbacks in one run need two prefixes.

    On several processes, loaders that know the ranks give each its part; of any other loader each process takes every
    n-th batch. Each process keeps its part of the bank, and the query goes round.
    """

    def __init__(
        self,
        features: Part | Mapping[str, Part] = "encoder",
        bank: str | Iterable[Any] = "bank",
        query: str | Iterable[Any] = "query",
        *,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        bank_dtype: BankDtype = "float32",
        every_n_epochs: int = 1,
        unpack: Unpack = unpack_batch,
        prefix: str = "knn",
    ) -> None:
        loaders = {"bank": bank, "query": query}
        super().__init__(features, loaders, every_n_epochs=every_n_epochs, unpack=unpack, prefix=prefix)
        self.evaluators = [
            KNN(k=k, temperature=temperature, bank_dtype=bank_dtype, prefix=prefix, feature=name, main=number == 0)
            for number, name in enumerate(self.features)
        ]

    def measure(self, trainer: Any, module: Any, data: EvaluationData) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for part, evaluator in zip(self.features.values(), self.evaluators, strict=True):
            metrics |= evaluator.run(find_part(self.owner, module, part), data)
        return metrics
