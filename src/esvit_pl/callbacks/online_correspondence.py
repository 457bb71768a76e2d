"""Accuracy of region correspondence of a network while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from esvit_pl.callbacks.lookup import Part, find_part
from esvit_pl.callbacks.online import OnlineEvaluation
from esvit_pl.evaluation.correspondence import RegionCorrespondence, RegionRetrieval
from esvit_pl.evaluation.data import EvaluationData, place_of
from esvit_pl.evaluation.features import unpack_batch
from esvit_pl.evaluation.interface import Evaluator


class CorrespondenceAccuracy(OnlineEvaluation):
    """How often a region finds its own place in another view (`evaluation.RegionCorrespondence`), after an epoch.

    Logs ``correspondence/exact``, ``correspondence/near``, ``correspondence/distance``, and with `retrieval` also
    ``retrieval/image`` and ``retrieval/place`` (`evaluation.RegionRetrieval`); beside each what chance would give.

    >>> from esvit_pl.callbacks import CorrespondenceAccuracy
    >>> accuracy = CorrespondenceAccuracy(every_n_epochs=5)  # Trainer(callbacks=[accuracy])

    Args:
        features: path of a network in the module that gives `Features`, or a function images -> ``Features``.
        pairs: (same_box, color, seed) -> batches of two views, as dicts with ``views`` (two of (b c h w)), ``boxes``
            (b 2 4) and ``flipped`` (b 2); None: ``datamodule.pairs_dataloader``.
        same_box, color, seed: of the views, see `evaluation.RegionCorrespondence`.
        retrieval: of how many images the regions are compared with one another; 0: none.
        every_n_epochs: measure after so many epochs, and after the last one.
    """

    def __init__(
        self,
        features: Part = "encoder",
        pairs: Callable[..., Iterable[Any]] | None = None,
        *,
        same_box: bool = False,
        color: bool = True,
        seed: int = 0,
        retrieval: int = 0,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(features, {}, every_n_epochs=every_n_epochs, unpack=unpack_batch, prefix="correspondence")
        self.pairs = pairs
        how: dict[str, Any] = {"same_box": same_box, "color": color, "seed": seed}
        self.evaluators: list[Evaluator] = [RegionCorrespondence(**how)]
        if retrieval:
            self.evaluators.append(RegionRetrieval(retrieval, **how))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._pairs(trainer)

    def measure(self, trainer: Any, module: Any, data: EvaluationData) -> dict[str, float]:
        (part,) = self.features.values()
        pairs = EvaluationData(pairs=self._pairs(trainer), place=place_of(trainer))
        network = find_part(self.owner, module, part)
        return {name: value for each in self.evaluators for name, value in each.run(network, pairs).items()}

    def _pairs(self, trainer: Any) -> Callable[..., Iterable[Any]]:
        found = self.pairs or getattr(getattr(trainer, "datamodule", None), "pairs_dataloader", None)
        if found is None:
            raise ValueError(
                "CorrespondenceAccuracy needs pairs of views: a datamodule with pairs_dataloader, or pairs= a function "
                "(same_box, color, seed) -> batches with views, boxes and flipped"
            )
        return found
