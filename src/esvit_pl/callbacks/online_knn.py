"""k-NN accuracy of a network while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback
from torch import nn

from esvit_pl.callbacks.parts import (
    Part,
    check_interval,
    features_on_trainer,
    find_loader,
    find_part,
    is_due,
    log_accuracies,
    named_parts,
    need_labels,
)
from esvit_pl.evaluation.features import Extracted, Unpack, unpack_batch
from esvit_pl.evaluation.knn import knn_accuracy_over_ranks
from esvit_pl.evaluation.names import knn_metrics
from esvit_pl.isolation import undisturbed
from esvit_pl.metrics.knn import TopK, as_ks, check_temperature


class OnlineKNN(Callback):
    """Weighted k-NN (`metrics.knn`) of frozen features at the end of an epoch, in any Lightning module.

    Logs ``knn/top1`` and ``knn/top5`` as fractions, before ModelCheckpoint and EarlyStopping look; further features
    and k as ``knn/<feature>/k<k>/top1``. The training goes on bit for bit as without it: its weights, modes, random
    generators and ``global_step`` are left as they were.

    Args:
        features: what to measure: the path of a network in the module, or a function images -> (b d) or ``Features``;
            several as a dict {name: path or function}, the main one first.
        bank: images with labels that vote: a loader, or a name: "bank" is ``datamodule.bank_dataloader()``.
        query: images to classify, likewise. Any loader of a foreign project will do ("train", "val").
        k: number of voting neighbours, or several, the main one first.
        temperature: of the votes.
        every_n_epochs: measure after so many epochs, and after the last one.
        unpack: batch -> (images, labels); tuples (image, label) and dicts with "image" and "label" need none.
        prefix: of the metrics' names; two of these callbacks in one run need two prefixes.

    On several processes, loaders that know the ranks give each its part; of any other loader each process takes every
    n-th batch. Bank features are gathered once for each measurement.
    """

    def __init__(
        self,
        features: Part | Mapping[str, Part] = "teacher.backbone",
        bank: str | Iterable[Any] = "bank",
        query: str | Iterable[Any] = "query",
        *,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        every_n_epochs: int = 1,
        unpack: Unpack = unpack_batch,
        prefix: str = "knn",
    ) -> None:
        check_interval("OnlineKNN", every_n_epochs)
        check_temperature(temperature)
        self.features = named_parts("OnlineKNN", features)
        self.bank, self.query = bank, query
        self.k = as_ks(k)
        self.temperature = temperature
        self.every_n_epochs = every_n_epochs
        self.unpack = unpack
        self.prefix = prefix
        self.last: dict[str, float] = {}
        """Metrics of the last measurement."""
        self._loaders: dict[str, Iterable[Any]] = {}

    @property
    def state_key(self) -> str:
        return f"OnlineKNN[{self.prefix}]"

    def state_dict(self) -> dict[str, Any]:
        return {"last": dict(self.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = dict(state_dict["last"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        for part in self.features.values():
            find_part("OnlineKNN", pl_module, part)
        for loader in (self.bank, self.query):
            find_loader("OnlineKNN", trainer, pl_module, loader)
        if isinstance(self.bank, str):
            need_labels("OnlineKNN", trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        with undisturbed(pl_module):
            results, num_query = self.measure(trainer, pl_module)
        self.last = knn_metrics(self.prefix, results)
        log_accuracies(pl_module, self.prefix, self.last, num_query)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._loaders = {}

    def measure(self, trainer: Any, module: nn.Module) -> tuple[list[tuple[str | None, dict[int, TopK]]], int]:
        """[(feature's name, {k: accuracies})] and the number of query images, over all ranks."""
        results, num_query = [], 0
        for name, part in self.features.items():
            network = find_part("OnlineKNN", module, part)
            bank, query = (self._extract(trainer, module, network, which) for which in ("bank", "query"))
            accuracies, num_query = knn_accuracy_over_ranks(bank, query, k=self.k, temperature=self.temperature)
            results.append((name, accuracies))
        return results, num_query

    def _extract(self, trainer: Any, module: Any, network: Callable[..., Any], which: str) -> Extracted:
        if which not in self._loaders:  # kept, so that workers may persist
            self._loaders[which] = find_loader("OnlineKNN", trainer, module, getattr(self, which))()
        return features_on_trainer(trainer, network, self._loaders[which], self.unpack)
