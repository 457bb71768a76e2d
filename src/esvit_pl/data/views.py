"""Single images as the loading processes prepare them: data sets of torch, one class for each kind of item."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from esvit_pl.augment import (
    RandAugment,
    Recipe,
    ViewParameters,
    ViewRecipe,
    cut_views,
    draw,
    draw_pair,
    evaluation_view,
    finish_views,
    image_moments,
    largest_reduction,
    make_views,
    pair_recipe,
)
from esvit_pl.data.at_work import AtWork
from esvit_pl.data.threads import as_in_a_worker
from esvit_pl.datasets import ImageDataset, readable
from esvit_pl.datasets.interface import Label

Place = int | tuple[int, int]  # an index, or (epoch, index)


class TrainingViews(Dataset[dict[str, Any]]):
    """Image number `index` in epoch `epoch`, as the views that both numbers and the seed determine."""

    def __init__(
        self,
        images: ImageDataset,
        recipe: Recipe,
        views: tuple[ViewRecipe, ...],
        seed: int,
        *,
        reduced_decoding: bool = False,
    ) -> None:
        self.images, self.recipe, self.views, self.seed = images, recipe, views, seed
        self.reduced_decoding, self.at_work = reduced_decoding, AtWork()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        epoch, index = place if isinstance(place, tuple) else (0, place)  # `overfit_batches` samples plain numbers
        with as_in_a_worker():
            return readable(partial(self._views, epoch, index), len(self), index, self.seed, epoch)

    def _views(self, epoch: int, index: int, shown: int) -> dict[str, Any]:
        """Views of the image `shown`, which another one's place may hold, as drawn for `index`."""
        with self.at_work.on(shown):
            return self._opened(epoch, index, shown)

    def _opened(self, epoch: int, index: int, shown: int) -> dict[str, Any]:
        if self.reduced_decoding:
            size, label, decode = self.images.open(shown)
            drawn = self.draw(size, epoch, index)
            image = decode(largest_reduction(drawn, size))
        else:
            image, label = self.images[shown]
            drawn = self.draw(image.shape[-2:], epoch, index)
        return _item(shown, label, **self.tensors(image, drawn, epoch, index))

    def draw(self, image_size: Sequence[int], epoch: int, index: int) -> ViewParameters:
        return draw(self.views, self.recipe, image_size, seed=self.seed, epoch=epoch, index=index)

    def tensors(self, image: Tensor, drawn: ViewParameters, epoch: int, index: int) -> dict[str, Any]:
        """Entries of the batch for one image, without the batch's dimension."""
        return {"views": make_views(self.recipe, image, drawn), **_places(drawn)}


class PairsOfViews(TrainingViews):
    """Two global views of each image, the same in every epoch.

    Args:
        same_box: both show the same part of the image.
        color: with the changes of colour that the training makes.
    """

    def __init__(self, images: ImageDataset, recipe: Recipe, *, same_box: bool, color: bool, seed: int) -> None:
        recipe = pair_recipe(recipe, color=color)
        super().__init__(images, recipe, recipe.views, seed)
        self.same_box = same_box

    def draw(self, image_size: Sequence[int], epoch: int, index: int) -> ViewParameters:
        return draw_pair(self.recipe, image_size, same_box=self.same_box, seed=self.seed, index=index)


class TrainingCrops(TrainingViews):
    """The same before colour: the crops, and what `finish_views` needs to make views of them."""

    def tensors(self, image: Tensor, drawn: ViewParameters, epoch: int, index: int) -> dict[str, Any]:
        tensors = {"crops": cut_views(image, drawn), **_places(drawn)}
        moments = image_moments(self.recipe, image)
        if moments is not None:
            tensors["moments"] = moments
        if any(view.noise for view in self.views):
            fields = zip(drawn.noise, drawn.size, strict=True)
            tensors["noise"] = [torch.zeros(1, side, side) if field is None else field for field, side in fields]
        return tensors


class SupervisedView(TrainingViews):
    """One view for training with labels, without its place in the image."""

    def __init__(self, *args: Any, rand_augment: RandAugment | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.rand_augment = rand_augment

    def tensors(self, image: Tensor, drawn: ViewParameters, epoch: int, index: int) -> dict[str, Any]:
        crops = cut_views(image, drawn)
        if self.rand_augment is not None:
            crops = [self.rand_augment(crop, self.seed, epoch, index, "rand_augment") for crop in crops]
        batch = [crop[None] for crop in crops]
        return {"image": finish_views(self.recipe, batch, drawn.params[None], image_moments(self.recipe, image))[0][0]}


class EvaluationImages(Dataset[dict[str, Any]]):
    """The images resized, cut from the centre and normalised."""

    def __init__(self, images: ImageDataset, recipe: Recipe) -> None:
        self.images, self.recipe, self.at_work = images, recipe, AtWork()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with as_in_a_worker():
            return readable(self._view, len(self), index)

    def _view(self, shown: int) -> dict[str, Any]:
        with self.at_work.on(shown):
            image, label = self.images[shown]
            return _item(shown, label, image=evaluation_view(self.recipe, image))


def _places(drawn: ViewParameters) -> dict[str, Any]:
    places: dict[str, Any] = {"boxes": drawn.boxes, "flipped": drawn.flipped, "params": drawn.params}
    return {**places, "masks": list(drawn.masks)} if any(mask is not None for mask in drawn.masks) else places


def _item(index: int, label: Label | None, **tensors: Any) -> dict[str, Any]:
    return {**tensors, "index": index, **({} if label is None else {"label": label})}
