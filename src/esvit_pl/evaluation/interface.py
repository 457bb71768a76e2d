"""What every evaluator is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from esvit_pl.evaluation.data import EvaluationData

Kind = Literal["pooled", "regions", "float16", "bfloat16"] | int | str
"""Which features of an encoder: the pooled one, the statistics of its regions (`metrics.region_statistics`), those of
its last n blocks side by side, or the pooled one at unit length, kept in half precision. "4+mean+max": those of its
last four blocks, beside them the mean and the largest values of its regions (`features.BESIDE`)."""

Encoder = Callable[[Any], Any]
"""Images (b c h w) -> a tensor (b d) or ``Features``; a `Backbone` where an evaluator reads its last blocks."""


class Evaluator(Protocol):
    """A question to a frozen encoder that is answered in numbers: k-NN, a linear probe, and what you write.

    A subclass writes `run`, and what it needs of the others. An option in the config group ``evaluator`` makes it a
    probe of every training: ``+evaluator@evaluation.spread=spread evaluation.probes=[knn,spread]``.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, Evaluator
    >>> class Spread(Evaluator):
    ...     reads = ("pooled",)
    ...     needs_labels = False
    ...     def run(self, encoder, data):
    ...         return {"spread": float(data.features(encoder, "query").features.std(0).mean())}
    >>> Spread().run(lambda images: images.flatten(1), EvaluationData(query=[torch.ones(4, 3, 2, 2)]))
    {'spread': 0.0}
    """

    needs_labels: bool = True
    """Whether it can only be asked on images with labels."""
    trains: bool = False
    """Whether it trains on the images, so that it takes minutes for each encoder."""

    @property
    def reads(self) -> tuple[Kind, ...]:
        """The features of query images that `run` asks for; of several evaluators one pass over the images gives all
        of them."""
        return ()

    @property
    def reads_bank(self) -> tuple[Kind, ...]:
        """The features of images of the bank, likewise."""
        return ()

    def check(self, encoder: Any, num_classes: int | None) -> None:
        """Refuse what could not be evaluated, before a training of hours.

        Raises:
            ValueError: the encoder or the number of classes does not fit.
        """
        return None

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        """Ask.

        Args:
            encoder: frozen and in eval mode; see `Encoder`.
            data: images, and where to compute.

        Returns:
            {metric: number}, the one that a table of results shows first. The same on every process. A number whose
            name ends in ``top<k>`` is a fraction of right answers: it is shown in %, with an interval.
        """
        ...
