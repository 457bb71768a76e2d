"""The data module that pretraining, the linear probe and k-NN share.

Which images come in which order, and which views of them, are pure functions of (seed, epoch, index): the sampler gives
`(epoch, index)` pairs, so workers hold no state, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from esvit_pl.augment import (
    Recipe,
    ViewParameters,
    ViewRecipe,
    cut_views,
    draw,
    evaluation_view,
    finish_views,
    image_moments,
    largest_reduction,
    make_views,
)
from esvit_pl.datasets import ImageDataset, Splits
from esvit_pl.seeding import numpy_generator

Place = int | tuple[int, int]  # an index, or (epoch, index)


class ImageDataModule(LightningDataModule):
    """Training views, and the plain images of bank and query.

    `train_dataloader()` gives dicts (b images, v views, p columns of `augment.PARAMS`):
        train="multi_crop":   views (list of float (b 3 h w), global ones first), index (b,), boxes (b v 4: x, y, width,
                              height in 0-1 of the image), flipped (b v), params (b v p), label (b,) if there are any
        train="supervised":   image (b 3 h w), label (b,), index (b,)
    With `color_on="device"` the loader of multi-crop views gives, in place of `views`, what these are made of: crops
    (list of uint8 (b 3 h w)), and, if the recipe needs them, moments (b 2) and noise (list of float (b 1 h w)). They
    become views where the batch is moved to the device, under a Trainer by themselves, else by `finish(batch)`. The
    random numbers are the same, drawn in the worker, and so are the functions: the views of both ways are equal, on a
    GPU to float rounding.

    `val_dataloader()` is `query_dataloader()`; it and `bank_dataloader()` give image (b 3 h w), index, and label if
    there are any; every image once, in order, the last batch as short as it is. With several ranks rank r gets the
    images r, r + world, r + 2 world, ...; so ranks differ by at most one image, nothing is padded, and
    `len(loader.sampler)` is this rank's number (`index` says which image a row is). `index` counts within the loader's
    own split.

    An epoch of training is cut to a multiple of batch_size x ranks x accumulated batches; batch i of rank r is slice
    i * ranks + r of one shuffled list, so that 2 ranks of 8 or 2 accumulated batches of 8 see the 16 images of one
    batch of 16. Build the Trainer with `use_distributed_sampler=False`.

    Args:
        dataset: what to read, see `esvit_pl.datasets`.
        recipe: what to do with it, see `esvit_pl.augment`.
        batch_size: images per process and micro-batch.
        eval_batch_size: of bank and query.
        num_workers: loading processes; None for one per CPU core that this process may use, 8 at most.
        persistent_workers: keep them between epochs.
        pin_memory: None for "if there is a GPU".
        seed: of order and views.
        train: "multi_crop" or "supervised".
        color_on: where multi-crop views get their colour and normalisation: in the "worker" that cuts them, or in
            batches on the "device" that trains. Everything else is finished in the workers.
        reduced_decoding: decode a training JPEG at 1/2, 1/4 or 1/8 where every view's crop keeps at least the view's
            pixels; see `augment.largest_reduction`. Faster for large images. Order, boxes and colours are the same,
            the pixels are not quite. Evaluation reads whole images.
        train_subset: "all" training images or those of the "bank" alone; None for all in pretraining and the bank in
            supervised training, whose query must stay unseen.

    Raises:
        ValueError: a number out of range, supervised training on data without labels; from `train_dataloader()` when
            there are fewer images than one optimizer step needs.
    """

    def __init__(
        self,
        dataset: Splits,
        recipe: Recipe,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int | None = None,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        seed: int = 0,
        train: str = "multi_crop",
        color_on: str = "worker",
        reduced_decoding: bool = False,
        train_subset: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, or None for the number of CPU cores, got {num_workers}")
        if train not in ("multi_crop", "supervised"):
            raise ValueError(f"train must be 'multi_crop' or 'supervised', got {train!r}")
        if color_on not in ("worker", "device"):
            raise ValueError(f"color_on must be 'worker' or 'device', got {color_on!r}")
        if train_subset not in (None, "all", "bank"):
            raise ValueError(f"train_subset must be 'all', 'bank' or None, got {train_subset!r}")
        if train == "supervised" and not dataset.has_labels:
            raise ValueError("train='supervised' needs labels, and the data set has none: sort the images into folders")
        self.dataset, self.recipe, self.seed, self.train = dataset, recipe, seed, train
        self.color_on, self.reduced_decoding = color_on, reduced_decoding
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = _cores() if num_workers is None else num_workers
        self.persistent_workers = persistent_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.train_subset = train_subset or ("all" if train == "multi_crop" else "bank")
        self._epoch = 0

    @property
    def has_labels(self) -> bool:
        return self.dataset.has_labels

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or None without labels."""
        if self.dataset.classes is not None:
            return len(self.dataset.classes)
        labels = self.dataset.train.labels
        return None if labels is None else max(labels) + 1

    @property
    def train_images(self) -> ImageDataset:
        return self.dataset.train if self.train_subset == "all" else self.dataset.bank

    def setup(self, stage: str | None = None) -> None:
        self._say(self.dataset.describe())

    def set_epoch(self, epoch: int) -> None:
        """Where the next pass over a training loader starts when no Trainer is attached."""
        self._epoch = epoch

    def train_dataloader(self) -> DataLoader:
        kind: type[TrainingViews] = TrainingViews if self.color_on == "worker" else TrainingCrops
        views = self.recipe.views
        if self.train == "supervised":
            kind, views = SupervisedView, (self.recipe.supervised_view,)
        training = kind(self.train_images, self.recipe, views, self.seed, reduced_decoding=self.reduced_decoding)
        sampler = EpochSampler(
            len(training),
            batch_size=self.batch_size,
            ranks=self._ranks,
            rank=self._rank,
            accumulate=self._accumulate,
            seed=self.seed,
            start=self._start,
        )
        if sampler.left_out:
            self._say(
                f"each epoch leaves out {sampler.left_out:,} of {len(training):,} images, others every time: "
                f"the rest is no whole step of {sampler.window} ({sampler.window_terms})"
            )
        return self._loader(training, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader:
        return self.query_dataloader()

    def bank_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.dataset.bank)

    def query_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.dataset.query)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Not in `on_after_batch_transfer`: the parameters are still in main memory here, so that no GPU is waited for.
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self.finish(moved, batch["params"]) if isinstance(batch, dict) and "crops" in batch else moved

    def finish(self, batch: dict[str, Any], params: Tensor | None = None) -> dict[str, Any]:
        """Make the views of a batch that holds crops, where these are; the batch that `color_on="worker"` would give.

        `params` is a copy of `batch["params"]` in main memory, if there is one.

        Raises:
            ValueError: parameters in half precision, which Lightning makes them with a "true" one.
        """
        batch = dict(batch)
        crops, moments, noise = batch.pop("crops"), batch.pop("moments", None), batch.pop("noise", None)
        dtype = batch["params"].dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"color_on='device' needs the parameters of the views in float32, got {dtype}, which rounds them: "
                "take trainer precision bf16-mixed or 16-mixed, or color_on='worker'"
            )
        # Views are made in float32 in every precision, as the workers make them.
        params = (batch["params"] if params is None else params).float()
        moments = None if moments is None else moments.float()
        views = finish_views(self.recipe, crops, params, moments, noise and [field.float() for field in noise])
        return {"views": [view.to(dtype) for view in views], **batch}

    def state_dict(self) -> dict[str, Any]:
        """What the order of the images depends on; part of every checkpoint."""
        return {
            "images": len(self.train_images),
            "names": self._fingerprint,
            "batch_size": self.batch_size,
            "ranks": self._ranks,
            "accumulate": self._accumulate,
            "seed": self.seed,
            "train": self.train,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the run that is resumed, and change nothing; evaluation may use other data.

        Raises:
            ValueError: that run had other images, batches, ranks or another seed, so that its count of batches would
                mean another place in the data.
        """
        if self.trainer is not None and not self.trainer.training:
            return
        mine = self.state_dict()
        other = [f"{key} was {was} and is {mine.get(key)}" for key, was in state_dict.items() if mine.get(key) != was]
        if other:
            raise ValueError(
                f"cannot resume at the same place in the data: {'; '.join(other)}. Resume with the same "
                f"settings, or start a new run from the checkpoint's weights"
            )

    @cached_property
    def _fingerprint(self) -> str:
        images, digest = self.train_images, blake2b(digest_size=8)
        for index in range(len(images)):
            digest.update(images.name(index).encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    def _evaluation_loader(self, images: ImageDataset) -> DataLoader:
        share = RankShare(len(images), rank=self._rank, ranks=self._ranks)
        return self._loader(EvaluationImages(images, self.recipe), self.eval_batch_size, share)

    def _loader(self, data: Dataset, batch_size: int, sampler: Sampler) -> DataLoader:
        # Its own generator: a DataLoader without one draws from the global state, which training must not depend on.
        generator = torch.Generator().manual_seed(self.seed)
        return ResumableLoader(
            data,
            batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            generator=generator,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            pin_memory=self.pin_memory,
        )

    @property
    def _ranks(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def _start(self, batches: int) -> tuple[int, int]:
        """(epoch, batch) that the next pass over a loader of so many batches begins with.

        Read from the Trainer's own count of finished batches, each time: Lightning tells samplers the epoch too late
        for loaders with workers, and never the place in the middle of an epoch.
        """
        if self.trainer is None:
            return self._epoch, 0
        batches = limited(batches, self.trainer.limit_train_batches)
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return divmod(done, max(batches, 1))

    def _say(self, line: str) -> None:
        if self._rank == 0:
            say_once(line)


def limited(batches: int, limit: int | float | None) -> int:
    """Batches of an epoch under a Trainer's ``limit_train_batches``: a number, a share, or None for all."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def batch_size_of(loader: Any) -> int:
    """Images in a micro-batch of one process, of any loader; the learning rate scales with it.

    Raises:
        ValueError: the loader does not tell.
    """
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if size is None:
        raise ValueError(
            f"the learning rate needs the batch size, and {type(loader).__name__} does not tell it; "
            "give the training loader or its batch_sampler an attribute batch_size"
        )
    return int(size)


class EpochSampler(Sampler[tuple[int, int]]):
    """`(epoch, index)` pairs of one rank, in batches of `batch_size` one after the other.

    The order of an epoch is a pure function of (seed, epoch). Its length is cut to a multiple of the window,
    batch_size x ranks x accumulate, and is the same on every rank.

    Args:
        start: called with the number of batches in an epoch at the start of every pass; gives (epoch, batch).

    Raises:
        ValueError: fewer images than one window.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        ranks: int,
        rank: int,
        accumulate: int,
        seed: int,
        start: Callable[[int], tuple[int, int]],
    ) -> None:
        self.batch_size, self.ranks, self.rank, self.seed, self.start = batch_size, ranks, rank, seed, start
        self.size, self.window = size, batch_size * ranks * accumulate
        self.window_terms = f"batch_size {batch_size} x {ranks} ranks x {accumulate} accumulated batches"
        self.left_out = size % self.window
        if size < self.window:
            raise ValueError(
                f"one step needs {self.window} images ({self.window_terms}), and there are {size}: "
                f"lower batch_size to {max(size * batch_size // self.window, 1)} or less, or add images"
            )

    def __len__(self) -> int:
        """Images of this rank in a whole epoch."""
        return (self.size - self.left_out) // self.ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        batches = len(self) // self.batch_size
        epoch, first = self.start(batches)
        order = self.order(epoch)
        for batch in range(first, batches):
            at = (batch * self.ranks + self.rank) * self.batch_size
            yield from ((epoch, int(index)) for index in order[at : at + self.batch_size])

    def order(self, epoch: int) -> np.ndarray:
        """All images in the order of `epoch`, those that it leaves out last."""
        return numpy_generator(self.seed, epoch, "order").permutation(self.size)


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
        self.reduced_decoding = reduced_decoding

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        epoch, index = place if isinstance(place, tuple) else (0, place)  # `overfit_batches` samples plain numbers
        with _as_in_a_worker():
            if self.reduced_decoding:
                size, label, decode = self.images.open(index)
                drawn = self.draw(size, epoch, index)
                image = decode(largest_reduction(drawn, size))
            else:
                image, label = self.images[index]
                drawn = self.draw(image.shape[-2:], epoch, index)
            return _item(index, label, **self.tensors(image, drawn))

    def draw(self, image_size: Sequence[int], epoch: int, index: int) -> ViewParameters:
        return draw(self.views, self.recipe, image_size, seed=self.seed, epoch=epoch, index=index)

    def tensors(self, image: Tensor, drawn: ViewParameters) -> dict[str, Any]:
        return {"views": make_views(self.recipe, image, drawn), **_places(drawn)}


class TrainingCrops(TrainingViews):
    """The same, without colour: what `finish_views` makes the views of."""

    def tensors(self, image: Tensor, drawn: ViewParameters) -> dict[str, Any]:
        tensors = {"crops": cut_views(image, drawn), **_places(drawn)}
        moments = image_moments(self.recipe, image)
        if moments is not None:
            tensors["moments"] = moments
        if any(view.noise for view in self.views):
            fields = zip(drawn.noise, drawn.size, strict=True)
            tensors["noise"] = [torch.zeros(1, side, side) if field is None else field for field, side in fields]
        return tensors


class SupervisedView(TrainingViews):
    """One view, and not where it lies."""

    def tensors(self, image: Tensor, drawn: ViewParameters) -> dict[str, Any]:
        return {"image": make_views(self.recipe, image, drawn)[0]}


def _places(drawn: ViewParameters) -> dict[str, Any]:
    return {"boxes": drawn.boxes, "flipped": drawn.flipped, "params": drawn.params}


class RankShare(Sampler[int]):
    """Every image once over all ranks, in order, nothing padded: rank, rank + ranks, rank + 2 ranks, ..."""

    def __init__(self, size: int, *, rank: int, ranks: int) -> None:
        self.indices, self.ranks = range(rank, size, ranks), ranks

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


class EvaluationImages(Dataset[dict[str, Any]]):
    """The images resized, cut from the centre and normalised."""

    def __init__(self, images: ImageDataset, recipe: Recipe) -> None:
        self.images, self.recipe = images, recipe

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with _as_in_a_worker():
            image, label = self.images[index]
            view = evaluation_view(self.recipe, image)
        return _item(index, label, image=view)


class ResumableLoader(DataLoader):
    """A DataLoader that Lightning does not warn about on resuming: its place follows from the Trainer's count."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class OneThread:
    """One thread for torch inside, as many as before outside."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def _as_in_a_worker() -> AbstractContextManager[None]:
    """Workers have one thread; sums over pixels must not come out differently without workers."""
    return nullcontext() if get_worker_info() is not None else OneThread()


@cache
def say_once(line: str) -> None:
    """Print a line, once in a process: an evaluation builds many data modules over the same data."""
    print(line, flush=True)


def _item(index: int, label: int | None, **tensors: Tensor | list[Tensor]) -> dict[str, Any]:
    return {**tensors, "index": index, **({} if label is None else {"label": label})}


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(cores, 8)
