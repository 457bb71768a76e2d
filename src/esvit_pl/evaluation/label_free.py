"""Questions to frozen features that need no labels: how many directions they use, whether regions differ."""

# n images of bank and query | b images | d, c channels

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esvit_pl.distributed import dealt_in_turn, gather_over_ranks, gather_uneven, num_ranks
from esvit_pl.evaluation.data import EvaluationData, dealt
from esvit_pl.evaluation.features import pooled
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.evaluation.names import block_metric
from esvit_pl.isolation import untracked
from esvit_pl.metrics import (
    Moments,
    diversity,
    diversity_of,
    effective_rank,
    effective_rank_of,
    lidar_of,
    merged,
    moments,
    nearest,
    rankme,
    rankme_of,
    region_statistics,
)
from esvit_pl.precision import wide


class _LabelFree(Evaluator):
    """A number of the features of bank and query together."""

    needs_labels = False
    reads: tuple[Kind, ...] = ("pooled",)
    name: str
    number: Callable[[Tensor], Tensor]

    @property
    def reads_bank(self) -> tuple[Kind, ...]:
        return self.reads

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        (kind,) = self.reads
        features = of_bank_and_query(encoder, data, kind)
        return {self.name: float(type(self).number(features))}


def of_bank_and_query(encoder: Any, data: EvaluationData, kind: Kind) -> Tensor:
    """(n d) features of the images of all processes."""
    parts = [data.features(encoder, which, kind).features for which in ("bank", "query")]
    return gather_uneven(torch.cat([part for part in parts if len(part)]) if any(map(len, parts)) else parts[0])


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


class LiDAR(Evaluator):
    """LiDAR (Thilak et al., ICLR 2024; `metrics.lidar`): in how many directions images differ more than their views do.

    Views are made as the training makes its global crops, of the first images of the query. The paper has 50 views of
    1,000 images. Of the views only sums are kept.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, LiDAR
    >>> views = lambda **how: [{"views": [torch.eye(3), torch.eye(3)]}]
    >>> round(LiDAR(views=4).run(lambda images: images, EvaluationData(pairs=views))["lidar"], 3)
    2.0

    Args:
        views: of each image; an even number.
        images: so many at most.
        color: with the changes of colour of the training.
        seed: of the views.

    Raises:
        ValueError: an odd number of views, or none; no images; the data has no pairs of views.
    """

    needs_labels = False

    def __init__(self, views: int = 50, images: int = 1000, *, color: bool = True, seed: int = 0) -> None:
        if views < 2 or views % 2:
            raise ValueError(f"LiDAR needs an even number of views, 2 or more, got {views}")
        if images < 2:
            raise ValueError(f"LiDAR needs 2 images or more, got {images}")
        self.views, self.images, self.color, self.seed = views, images, color, seed

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        return {"lidar": self.of(lambda images: [pooled(encoder(images))], data)[0]}

    def of(self, function: Callable[[Any], list[Tensor]], data: EvaluationData) -> list[float]:
        """LiDAR of each of several features of the same views.

        Args:
            function: images -> (b d) of each feature.
        """
        wanted = -(-self.images // num_ranks())
        scatter: list[Moments] = []  # of all views
        sums: list[list[Tensor]] = []  # (b d) over the views of each image, batch by batch
        with untracked():
            for seed in range(self.seed, self.seed + self.views // 2):
                for place, pairs in enumerate(self._pairs(function, data, seed, wanted)):
                    scatter = together(scatter, [moments(pair.flatten(0, 1)) for pair in pairs])
                    both = [pair.double().sum(1) for pair in pairs]
                    if seed == self.seed:
                        sums.append(both)
                    else:
                        sums[place] = [old + new for old, new in zip(sums[place], both, strict=True)]
        if not sums:
            raise ValueError("LiDAR needs an image or more on every process, and one has none")
        means = [moments(torch.cat(batches) / self.views) for batches in zip(*sums, strict=True)]
        known = zip(over_ranks(scatter), over_ranks(means), strict=True)
        return [float(lidar_of(of_views, of_means)) for of_views, of_means in known]

    def _pairs(
        self, function: Callable[[Any], list[Tensor]], data: EvaluationData, seed: int, wanted: int
    ) -> Iterator[list[Tensor]]:
        """(b 2 d) of each feature: two views of this rank's images, batch by batch."""
        for batch in data.pairs(same_box=False, color=self.color, seed=seed):
            views = data.place.prepare(list(batch["views"]))
            with data.place.forward_context():
                one, two = (function(view) for view in views)
            yield [torch.stack([wide(a), wide(b)], dim=1)[:wanted] for a, b in zip(one, two, strict=True)]
            wanted -= len(views[0])
            if wanted <= 0:
                break


class PerBlock(Evaluator):
    """Effective rank, RankMe and region diversity of every block, in one pass over the images, and LiDAR of every one,
    in one pass over its views: where directions are lost. Of the features only sums are kept (`metrics.Moments`).

    >>> import torch
    >>> from esvit_pl import build
    >>> from esvit_pl.evaluation import EvaluationData, PerBlock
    >>> swin = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32).eval()
    >>> images = torch.rand(8, 3, 32, 32)
    >>> list(PerBlock(blocks=1, views=0).run(swin, EvaluationData(bank=[images[:4]], query=[images[4:]])))
    ['effective_rank/block2', 'rankme/block2', 'region_diversity/block2']

    Blocks are those of `Backbone.block_features`, counted over all stages, from 1. The last one's feature is the
    encoder's own.

    Args:
        blocks: so many of the last ones; None: all.
        views: of `LiDAR`, as are the other arguments; 0 leaves it out.
    """

    needs_labels = False

    def __init__(
        self,
        blocks: int | None = None,
        *,
        views: int = 50,
        images: int = 1000,
        color: bool = True,
        seed: int = 0,
    ) -> None:
        if blocks is not None and blocks < 1:
            raise ValueError(f"PerBlock needs blocks of 1 or more, or None for all, got {blocks}")
        self.blocks = blocks
        self.lidar = LiDAR(views, images, color=color, seed=seed) if views else None

    def check(self, encoder: Any, num_classes: int | None) -> None:
        if self.blocks is not None:
            encoder.last_blocks_width(self.blocks)  # raises where there are not so many

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        blocks = encoder.block_features
        features: list[Moments] = []
        statistics: list[Moments] = []
        number = 0
        with untracked():
            for batch in chain(dealt(data.loader("bank")), dealt(data.loader("query"))):
                images = data.place.prepare(data.unpack(batch)[0])
                with data.place.forward_context():
                    seen = [(wide(each.pooled), region_statistics(each.regions)) for each in blocks(images)]
                number = len(seen)
                rows_of_blocks, regions_of_blocks = zip(*seen[-(self.blocks or number) :], strict=True)
                features = together(features, [moments(rows) for rows in rows_of_blocks])
                statistics = together(statistics, [moments(rows) for rows in regions_of_blocks])
        if not number:
            raise ValueError("PerBlock needs an image or more on every process, and one has none")
        last = len(features)
        found: list[dict[str, Tensor | float]] = [
            {
                "effective_rank": effective_rank_of(rows),
                "rankme": rankme_of(rows),
                "region_diversity": diversity_of(of_regions),
            }
            for rows, of_regions in zip(over_ranks(features), over_ranks(statistics), strict=True)
        ]
        if self.lidar is not None:
            directions = self.lidar.of(lambda views: [each.pooled for each in blocks(views)][-last:], data)
            for measures, value in zip(found, directions, strict=True):
                measures["lidar"] = value
        return {
            block_metric(measure, block): float(value)
            for block, measures in zip(range(number, number - last, -1), reversed(found), strict=True)
            for measure, value in measures.items()
        }


def together(old: list[Moments], new: list[Moments]) -> list[Moments]:
    """Moments of several features of old and new images; of the new ones where there were none."""
    return [merged(pair) for pair in zip(old, new, strict=True)] if old else new


def over_ranks(features: Sequence[Moments]) -> list[Moments]:
    """Moments of several features of the images of all processes."""
    if num_ranks() == 1:
        return list(features)
    gathered = [zip(*(gather_over_ranks(part[None]) for part in own), strict=True) for own in features]
    return [merged([Moments(*part) for part in parts]) for parts in gathered]


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
    reads_bank: tuple[Kind, ...] = ("pooled",)

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
