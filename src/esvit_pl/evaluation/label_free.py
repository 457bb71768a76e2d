"""Questions to frozen features that need no labels: how many directions they use, whether regions differ."""

# n images of bank and query | d, c channels

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esvit_pl.distributed import gather_uneven, num_ranks
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.metrics import diversity, effective_rank, nearest, rankme


class _LabelFree(Evaluator):
    """A number of the features of bank and query together."""

    needs_labels = False
    reads: tuple[Kind, ...] = ("pooled",)
    name: str
    number: Callable[[Tensor], Tensor]

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        (kind,) = self.reads
        parts = [data.features(encoder, which, kind).features for which in ("bank", "query")]
        features = gather_uneven(torch.cat([part for part in parts if len(part)]) if any(map(len, parts)) else parts[0])
        return {self.name: float(type(self).number(features))}


class EffectiveRank(_LabelFree):
    """How many directions the images' features use (`metrics.effective_rank`): 1 to the smaller of images and channels.

    >>> import torch
    >>> from esvit_pl.evaluation import EffectiveRank, EvaluationData
    >>> data = EvaluationData(bank=[torch.eye(3)], query=[-torch.eye(3)])
    >>> round(EffectiveRank().run(lambda images: images, data)["effective_rank"], 3)
    3.0
    """

    name = "effective_rank"
    number = staticmethod(effective_rank)


class RankMe(_LabelFree):
    """RankMe (Garrido et al., ICML 2023; `metrics.rankme`): the same question, asked of features that are not centred.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, RankMe
    >>> data = EvaluationData(bank=[torch.eye(3)], query=[torch.eye(3)])
    >>> round(RankMe().run(lambda images: images, data)["rankme"], 3)
    3.0
    """

    name = "rankme"
    number = staticmethod(rankme)


class RegionDiversity(_LabelFree):
    """Share of the regions' variance that lies within images (`metrics.region_diversity`): 0 where all regions of an
    image are equal.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, RawPixels, RegionDiversity
    >>> data = EvaluationData(bank=[torch.rand(4, 3, 8, 8)], query=[torch.rand(4, 3, 8, 8)])
    >>> RegionDiversity().run(RawPixels(side=8), data)  # it has one region
    {'region_diversity': 0.0}
    """

    name = "region_diversity"
    reads = ("regions",)
    number = staticmethod(diversity)


class Neighbours(NamedTuple):
    """An image of the query and its nearest ones of the bank, nearest first; numbers of images."""

    query: int
    bank: list[int]
    cosines: list[float]


class NearestImages(Evaluator):
    """Which images of the bank are nearest to some of the query, for a picture; `found` after `run`.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, NearestImages
    >>> looked = NearestImages(queries=1, k=2)
    >>> looked.run(lambda images: images, EvaluationData(bank=[torch.eye(3)], query=[torch.tensor([[0.0, 3.0, 4.0]])]))
    {'nearest/cosine': 0.8...}
    >>> looked.found[0].bank
    [2, 1]

    Args:
        queries: how many images of the query, evenly chosen.
        k: how many neighbours of each.

    The numbers in `found` count images within bank and query, if the loaders deal them out to the processes in turn, as
    those of ImageDataModule do.
    """

    needs_labels = False
    reads: tuple[Kind, ...] = ("pooled",)

    def __init__(self, queries: int = 8, k: int = 6) -> None:
        self.queries, self.k = queries, k
        self.found: list[Neighbours] = []

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        bank, query = (gather_uneven(data.features(encoder, which).features) for which in ("bank", "query"))
        chosen = evenly(len(query), self.queries)
        cosines, places = nearest(bank, query[chosen], k=min(self.k, len(bank)))
        of_bank, of_query = dealt_in_turn(len(bank)), dealt_in_turn(len(query))
        self.found = [
            Neighbours(of_query[place], [of_bank[place] for place in row], values)
            for place, row, values in zip(chosen, places.tolist(), cosines.tolist(), strict=True)
        ]
        return {"nearest/cosine": float(cosines[:, 0].mean())}


def evenly(number: int, at_most: int) -> list[int]:
    """At most so many of the numbers from 0 on, equally far apart.

    >>> evenly(10, 4), evenly(3, 4)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    return list(range(number)) if number <= at_most else [place * number // at_most for place in range(at_most)]


def dealt_in_turn(number: int) -> list[int]:
    """Which image stands where, after the processes' parts were gathered: rank r has r, r + ranks, r + 2 ranks, ..."""
    return [image for rank in range(num_ranks()) for image in range(rank, number, num_ranks())]
