"""Whether regions find their own place in another view of the same image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from esvit_pl.distributed import gather_uneven, num_ranks, sum_over_ranks
from esvit_pl.evaluation.data import EvaluationData
from esvit_pl.evaluation.interface import Evaluator
from esvit_pl.isolation import untracked
from esvit_pl.metrics import MEASURES, RegionMap, correspond, correspondence_sums, retrieved
from esvit_pl.precision import wide


class RegionCorrespondence(Evaluator):
    """Accuracy of region correspondence between two views whose boxes in the image are known.

    Each region of one view is matched to the region of the other view with the most similar feature. Counted are the
    regions whose place lies inside the other view.

    - ``correspondence/exact``: share of matches to the very region that holds the place;
    - ``correspondence/near``: to this region or one of the 8 around it;
    - ``correspondence/distance``: from the place to the middle of the match, mean, in pixels of the view;
    - ``correspondence/exact_chance`` and so on: what a random match would give;
    - ``correspondence/regions``: how many were counted.

    >>> import torch
    >>> from esvit_pl.backbones import build
    >>> from esvit_pl.evaluation import EvaluationData, RegionCorrespondence
    >>> swin = build("swin", embed_dim=8, depths=[1], num_heads=[1], window=4, img_size=32).eval()
    >>> boxes, flipped = torch.tensor([[[0.0, 0.0, 1.0, 1.0]] * 2]), torch.tensor([[False, False]])
    >>> batch = {"views": [torch.rand(1, 3, 32, 32)] * 2, "boxes": boxes, "flipped": flipped}
    >>> answer = RegionCorrespondence().run(swin, EvaluationData(pairs=lambda **how: [batch]))
    >>> answer["correspondence/exact"]
    1.0

    Args:
        same_box: show the same part of the image in both views; they differ in colour and in being mirrored.
        color: with the colour changes of the training; false: with crops and mirrors alone.
        seed: of the views.

    Raises:
        ValueError: the data has no pairs of views; the encoder gives no regions.
    """

    needs_labels = False

    def __init__(self, *, same_box: bool = False, color: bool = True, seed: int = 0) -> None:
        self.same_box, self.color, self.seed = same_box, color, seed

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        with untracked():
            sums = torch.zeros(7, dtype=torch.float64)  # here: in inference mode nothing could be added to it
            for batch in data.pairs(same_box=self.same_box, color=self.color, seed=self.seed):
                views = data.place.prepare(list(batch["views"]))
                with data.place.forward_context():
                    maps = [region_map(encoder(view), batch, number) for number, view in enumerate(views)]
                for one, other in (maps, maps[::-1]):
                    sums += correspondence_sums(correspond(one, other), other.grid, views[0].shape[-1])
        number, *rest = sum_over_ranks(sums.to(data.place.device)).tolist()
        names = [*MEASURES, *(f"{name}_chance" for name in MEASURES)]
        means = {name: value / max(number, 1) for name, value in zip(names, rest, strict=True)}
        return {f"correspondence/{name}": value for name, value in {**means, "regions": number}.items()}


class RegionRetrieval(Evaluator):
    """From which image, and from which place in it, does a region come?

    Each region of one view asks for the most similar one among the regions of the other views of all images.

    - ``retrieval/image``: share that comes from the right image;
    - ``retrieval/place``: share that is the right region of it;
    - ``retrieval/image_chance``, ``retrieval/place_chance``: of a region drawn at random.

    >>> import torch
    >>> from esvit_pl.backbones import build
    >>> from esvit_pl.evaluation import EvaluationData, RegionRetrieval
    >>> swin = build("swin", embed_dim=8, depths=[1], num_heads=[1], window=4, img_size=32).eval()
    >>> boxes, flipped = torch.tensor([[[0.0, 0.0, 1.0, 1.0]] * 2]), torch.tensor([[False, False]])
    >>> batch = {"views": [torch.rand(1, 3, 32, 32)] * 2, "boxes": boxes, "flipped": flipped}
    >>> answer = RegionRetrieval().run(swin, EvaluationData(pairs=lambda **how: [batch]))
    >>> answer["retrieval/place"]
    1.0

    Args:
        images: how many, the first ones of the pairs; all regions of all of them are compared.
        same_box, color, seed: of the views, as in `RegionCorrespondence`.
    """

    needs_labels = False

    def __init__(self, images: int = 256, *, same_box: bool = False, color: bool = True, seed: int = 0) -> None:
        if images < 1:
            raise ValueError(f"RegionRetrieval needs 1 image or more, got {images}")
        self.images, self.same_box, self.color, self.seed = images, same_box, color, seed

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        parts: tuple[list[RegionMap], list[RegionMap]] = ([], [])
        wanted = -(-self.images // num_ranks())
        with untracked():
            for batch in data.pairs(same_box=self.same_box, color=self.color, seed=self.seed):
                views = data.place.prepare(list(batch["views"]))
                with data.place.forward_context():
                    for number, (view, part) in enumerate(zip(views, parts, strict=True)):
                        part.append(region_map(encoder(view), batch, number))
                if sum(len(each.regions) for each in parts[0]) >= wanted:
                    break
        if not parts[0]:
            raise ValueError("RegionRetrieval needs an image or more on every process, and one has none")
        first, second = (_joined(part, wanted, data) for part in parts)
        number, image, place = (retrieved(first, second) + retrieved(second, first)).tolist()
        images, regions = second.regions.shape[:2]
        return {
            "retrieval/image": image / max(number, 1),
            "retrieval/place": place / max(number, 1),
            "retrieval/image_chance": 1 / images,
            "retrieval/place_chance": 1 / (images * regions),
        }


def _joined(parts: Sequence[RegionMap], at_most: int, data: EvaluationData) -> RegionMap:
    """One map of all images, those of other processes too."""
    fields = zip(*((part.regions, part.boxes, part.flipped) for part in parts), strict=True)
    regions, boxes, flipped = (
        gather_uneven(torch.cat(field)[:at_most].to(data.place.device)).cpu() for field in fields
    )
    return RegionMap(regions, parts[0].grid, boxes, flipped)


def region_map(output: Any, batch: Any, number: int) -> RegionMap:
    """What an encoder gave for view `number` of a batch of views, on the CPU."""
    regions, grid = getattr(output, "regions", None), getattr(output, "grid", None)
    if regions is None or grid is None:
        raise ValueError(
            f"correspondence needs an encoder that gives Features with regions and a grid, got {type(output).__name__}"
        )
    return RegionMap(wide(regions).cpu(), grid, batch["boxes"][:, number].cpu(), batch["flipped"][:, number].cpu())


class Way(NamedTuple):
    """How two views of an image are made: arguments of `RegionCorrespondence`, and what it is called."""

    title: str
    same_box: bool
    color: bool


WAYS = {
    "random": Way("two random boxes", same_box=False, color=True),
    "random_plain": Way("two random boxes, colours kept", same_box=False, color=False),
    "same": Way("the same box", same_box=True, color=True),
    "same_plain": Way("the same box, colours kept", same_box=True, color=False),
}
