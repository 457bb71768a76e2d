"""What measurements at the end of an epoch share: loaders, the interval, an undisturbed module, logging."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytorch_lightning import Callback

from esvit_pl.callbacks.intervals import check_interval, is_due
from esvit_pl.callbacks.lookup import Part, find_part, named_parts
from esvit_pl.evaluation.data import EvaluationData, place_of
from esvit_pl.evaluation.features import Unpack
from esvit_pl.evaluation.loaders import find_loader, need_labels
from esvit_pl.evaluation.names import main_metric
from esvit_pl.isolation import undisturbed


class OnlineEvaluation(Callback):
    """Base class of `OnlineKNN`, `OnlineLinear`, `CorrespondenceAccuracy`, which describe its arguments; a subclass
    writes `measure`.

    Args:
        loaders: {"bank": ..., "query": ...}, each a loader or its name.
    """

    def __init__(
        self,
        features: Part | Mapping[str, Part],
        loaders: Mapping[str, str | Iterable[Any]],
        *,
        every_n_epochs: int,
        unpack: Unpack,
        prefix: str,
    ) -> None:
        self.owner = type(self).__name__
        check_interval(self.owner, every_n_epochs)
        self.features = named_parts(self.owner, features)
        self.loaders = dict(loaders)
        self.every_n_epochs = every_n_epochs
        self.unpack = unpack
        self.prefix = prefix
        self.last: dict[str, float] = {}
        """Metrics of the last measurement."""
        self._made: dict[str, Iterable[Any]] = {}

    def measure(self, trainer: Any, module: Any, data: EvaluationData) -> dict[str, float]:
        """Metrics of the module's networks as they are now, the same on all ranks."""
        raise NotImplementedError

    @property
    def state_key(self) -> str:
        return f"{self.owner}[{self.prefix}]"

    def state_dict(self) -> dict[str, Any]:
        return {"last": dict(self.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = dict(state_dict["last"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        for part in self.features.values():
            find_part(self.owner, pl_module, part)
        for loader in self.loaders.values():
            find_loader(self.owner, trainer, pl_module, loader)
        if any(isinstance(loader, str) for loader in self.loaders.values()):
            need_labels(self.owner, trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._make_loaders(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        self.last = self.measured(trainer, pl_module)
        for name, value in self.last.items():
            in_bar = name == main_metric(self.prefix)
            pl_module.log(name, value, on_step=False, on_epoch=True, prog_bar=in_bar, batch_size=1)

    def measured(self, trainer: Any, pl_module: Any) -> dict[str, float]:
        """`measure` now, with the loaders of the trainer; the module is left as it was."""
        self._make_loaders(trainer, pl_module)
        with undisturbed(pl_module):
            bank, query = self._made.get("bank"), self._made.get("query")
            data = EvaluationData(bank, query, unpack=self.unpack, place=place_of(trainer))
            return self.measure(trainer, pl_module, data)

    def _make_loaders(self, trainer: Any, pl_module: Any) -> None:
        for name, loader in self.loaders.items():
            if name not in self._made:  # kept, so that workers may persist
                self._made[name] = find_loader(self.owner, trainer, pl_module, loader)()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._made = {}
