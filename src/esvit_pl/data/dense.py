"""Loaders of whole images with masks, and of pairs of images with keypoints."""

# b images of a batch | s side in pixels | p keypoints

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from esvit_pl.augment import Recipe, evaluation_view
from esvit_pl.data.loaders import stack
from esvit_pl.data.threads import as_in_a_worker, default_workers
from esvit_pl.data.workers import obey_the_training
from esvit_pl.datasets import KeypointSplits, MaskedImages, SegmentationSplits, Splits, readable
from esvit_pl.evaluation.data import Place, Training
from esvit_pl.evaluation.dense import DenseData
from esvit_pl.seeding import numpy_generator


class DenseLoaders:
    """What dense evaluators ask about, prepared as squares of `size` x `size` pixels: both sides are resized.

    Images are resized and normalised as `recipe` does for evaluation, masks to the nearest pixel. So no part of an
    image is cut off, and its proportions change.

    >>> images = MaskedImages("VOC2012", ["JPEGImages/1.jpg"], ["SegmentationClass/1.png"])
    >>> loaders = DenseLoaders(SegmentationSplits(images, images, mask_classes=("sky", "sea")), Recipe())
    >>> loaders.size, loaders.data().classes
    (448, ['sky', 'sea'])

    Args:
        splits: of `voc2012`, `ade20k` or `spair71k`.
        recipe: of the training of the weights.
        size: in pixels; None is twice ``recipe.eval_crop``, 448 for backbones of 224.
        batch_size: images, or pairs.
        num_workers: loading processes; None for one per CPU core that this process may use, 8 at most.
        seed: of the order in which a head sees its training images.

    Raises:
        ValueError: the images have neither masks nor keypoints.
    """

    def __init__(
        self,
        splits: Splits,
        recipe: Recipe,
        *,
        size: int | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(splits, SegmentationSplits | KeypointSplits):
            raise ValueError(
                "dense tasks need images with masks or keypoints: dataset=voc2012, ade20k or spair71k, got "
                f"{type(splits.train).__name__}"
            )
        self.size = 2 * recipe.eval_crop if size is None else size
        if self.size < 1 or batch_size < 1:
            raise ValueError(f"size and batch_size must be 1 or more, got {self.size} and {batch_size}")
        self.splits, self.batch_size, self.seed = splits, batch_size, seed
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.recipe = replace(recipe, eval_resize=self.size, eval_crop=self.size, eval_squash=True)

    def data(self, place: Place | None = None) -> DenseData:
        """For evaluators: bank, query and training images of a segmentation; the pairs as query of keypoints.

        Args:
            place: device and precision; None is the CPU.
        """
        splits = self.splits
        if isinstance(splits, KeypointSplits):
            pairs = KeypointViews(splits, self.recipe)
            return DenseData(query=lambda: self._loader(pairs), classes=splits.categories, place=place)
        bank, query = SegmentationViews(splits.bank, self.recipe), SegmentationViews(splits.query, self.recipe)
        return DenseData(
            lambda: self._loader(bank),
            lambda: self._loader(query),
            train=partial(self._training, bank),
            classes=splits.mask_classes,
            place=place,
        )

    def _training(self, images: SegmentationViews) -> Training:
        order = Shuffled(len(images), self.seed)
        return Training(self._loader(images, order), self.batch_size, set_epoch=order.set_epoch)

    def _loader(self, data: Dataset[dict[str, Any]], sampler: Sampler[int] | None = None) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            data,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=stack,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=obey_the_training,
        )


class Shuffled(Sampler[int]):
    """All images in an order that depends on seed and epoch alone.

    >>> sorted(Shuffled(3, seed=0))
    [0, 1, 2]
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from numpy_generator(self.seed, self.epoch, "order").permutation(self.size).tolist()


class SegmentationViews(Dataset[dict[str, Any]]):
    """``image`` (3 s s) and ``mask`` uint8 (s s).

    Args:
        images: `MaskedImages`, or a part of them.
        recipe: with a side of s pixels.
    """

    def __init__(self, images: Any, recipe: Recipe) -> None:
        assert isinstance(images, MaskedImages)
        self.images, self.recipe = images, recipe

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with as_in_a_worker():
            return readable(self._item, len(self), index, "segmentation")

    def _item(self, index: int) -> dict[str, Any]:
        (image, _), mask = self.images[index], self.images.mask(index)
        if image.shape[-2:] != mask.shape:
            sizes = [f"{width} x {height}" for height, width in (image.shape[-2:], mask.shape)]
            raise ValueError(f"the image {self.images.name(index)} has {sizes[0]} pixels, and its mask {sizes[1]}")
        side = (self.recipe.eval_crop,) * 2
        resized = F.interpolate(mask[None, None], side, mode="nearest-exact")[0, 0]
        return {"image": evaluation_view(self.recipe, image), "mask": resized, "index": index}


class KeypointViews(Dataset[dict[str, Any]]):
    """``source`` and ``target`` (3 s s); ``source_places`` (p 2), x and y as shares of the source's width and height;
    ``target_points`` (p 2), ``target_box`` (4,) and ``target_size`` (2,), width and height, in pixels of the target as
    it was; ``category``, a number.

    Points are padded with nan to the most that a pair has. A keypoint lies in the middle of its pixel.

    Args:
        splits: images and pairs.
        recipe: with a side of s pixels.
    """

    def __init__(self, splits: KeypointSplits, recipe: Recipe) -> None:
        self.splits, self.recipe = splits, recipe
        self.numbers = {name: number for number, name in enumerate(splits.categories)}
        self.most = max(len(pair.source.points) for pair in splits.pairs)

    def __len__(self) -> int:
        return len(self.splits.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with as_in_a_worker():
            return readable(self._item, len(self), index, "keypoints")

    def _item(self, index: int) -> dict[str, Any]:
        pair = self.splits.pairs[index]
        height, width = pair.source.size
        places = (torch.tensor(pair.source.points) + 0.5) / torch.tensor([width, height])
        return {
            "source": self._image(pair.source),
            "target": self._image(pair.target),
            "source_places": self._padded(places),
            "target_points": self._padded(torch.tensor(pair.target.points)),
            "target_box": torch.tensor(pair.target.box),
            "target_size": torch.tensor(pair.target.size[::-1]),
            "category": self.numbers[pair.category],
            "index": index,
        }

    def _image(self, annotated: Any) -> Tensor:
        image, _ = self.splits.train[annotated.image]
        if tuple(image.shape[-2:]) != annotated.size:
            sizes = [f"{width} x {height}" for height, width in (image.shape[-2:], annotated.size)]
            name = self.splits.train.name(annotated.image)
            raise ValueError(f"the image {name} has {sizes[0]} pixels, and its annotation says {sizes[1]}")
        return evaluation_view(self.recipe, image)

    def _padded(self, points: Tensor) -> Tensor:
        return F.pad(points, (0, 0, 0, self.most - len(points)), value=float("nan"))
