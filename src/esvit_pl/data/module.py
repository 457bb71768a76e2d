"""The data module that pretraining, the linear probe and k-NN share.

Which images come in which order, and which views of them, are pure functions of (seed, epoch, index): the sampler gives
`(epoch, index)` pairs, so workers hold no state, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, cast

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from esvit_pl.augment import Batch, RandAugment, Recipe, finish_views
from esvit_pl.data.loaders import ResumableLoader, limited, stack
from esvit_pl.data.samplers import EpochSampler, RankShare
from esvit_pl.data.threads import cores, default_workers
from esvit_pl.data.views import EvaluationImages, PairsOfViews, SupervisedView, TrainingCrops, TrainingViews
from esvit_pl.data.workers import obey_the_training
from esvit_pl.datasets import ImageDataset, Splits, Subset
from esvit_pl.evaluation.logistic import held_out
from esvit_pl.printing import say_once

_WINDOW = ("batch_size", "ranks", "accumulate")


class ImageDataModule(LightningDataModule):
    """Loaders of training views, and of the whole images of bank and query.

    >>> from esvit_pl.datasets import ArrayDataset, Splits
    >>> images = ArrayDataset(torch.zeros(8, 3, 40, 40, dtype=torch.uint8), [f"{i}.png" for i in range(8)])
    >>> data = ImageDataModule(Splits(images), Recipe(global_size=32, local_size=16), batch_size=4, num_workers=0)
    >>> batch = next(iter(data.train_dataloader()))
    >>> [tuple(view.shape) for view in batch["views"][:3]]
    [(4, 3, 32, 32), (4, 3, 32, 32), (4, 3, 16, 16)]

    `train_dataloader()` gives dicts (b images):
        train="multi_crop":   an `augment.Batch`
        train="supervised":   image (b 3 h w), label (b,), index (b,)
    With `color_on="device"` the loader of multi-crop views gives, in place of `views`, what they are made of: crops
    (list of uint8 (b 3 h w)), and, if the recipe needs them, moments (b 2) and noise (list of float (b 1 h w)). A
    Trainer turns them into views when it moves the batch to the device; without a Trainer call `finish(batch)`. The
    random numbers are drawn in the worker either way, and the functions are the same: both ways give equal views, on a
    GPU up to float rounding.

    `bank_dataloader()` and `query_dataloader()` give image (b 3 h w), index, and label if there are labels: every image
    once, in order, the last batch as short as it is. `val_dataloader()` is `query_dataloader()`. With several ranks
    rank r gets the images r, r + world, r + 2 world, ...; so ranks differ by at most one image, nothing is padded, and
    `len(loader.sampler)` is this rank's number of images. `index` counts within the loader's own split.

    An epoch of training is cut to a multiple of batch_size x ranks x accumulated batches; batch i of rank r is slice
    i * ranks + r of one shuffled list, so that 2 ranks of 8 or 2 accumulated batches of 8 see the 16 images of one
    batch of 16. Build the Trainer with `use_distributed_sampler=False`.

    Args:
        dataset: which images, see `esvit_pl.datasets`.
        recipe: what is done to them, see `esvit_pl.augment`.
        batch_size: images per process and micro-batch.
        eval_batch_size: images in a batch of bank and query.
        num_workers: loading processes; None for one per CPU core that this process may use, 8 at most.
        persistent_workers: whether these processes live on between epochs.
        pin_memory: None for "if there is a GPU".
        timeout: seconds to wait for a batch from the loading processes, before one of them counts as hanging; 0 to wait
            for ever.
        seed: of order and views.
        train: "multi_crop" or "supervised".
        color_on: where multi-crop views get their colour and normalisation: in the "worker" that cuts them, or in
            batches on the "device" that trains. Everything else happens in the workers.
        reduced_decoding: decode a training JPEG at 1/2, 1/4 or 1/8 of its sides where every crop keeps at least its
            view's pixels; see `augment.largest_reduction`. Faster for large images. Order, boxes and colours stay the
            same; the pixels differ a little. Evaluation reads whole images.
        rand_augment: policy of `augment.RandAugment` for supervised training, whose crops are changed in the worker
            before they are normalised, wherever colour is computed. None for none.
        train_subset: "all" training images or those of the "bank" alone; None for all in pretraining and the bank in
            supervised training, whose query must stay unseen.

    Attributes:
        accepts_other_images: a resumed training may have other images or another batch than its checkpoint; whoever
            sets this sees to it that the epochs are counted anew (`Pretrainer.counts_anew`).
        accepts_other_content: it may have other pixels under the same names.

    Raises:
        ValueError: a number out of range; supervised training on data without labels; from `train_dataloader()`: fewer
            images than one optimizer step needs.
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
        timeout: float = 300,
        seed: int = 0,
        train: str = "multi_crop",
        color_on: str = "worker",
        reduced_decoding: bool = False,
        rand_augment: str | None = None,
        train_subset: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, or None for the number of CPU cores, got {num_workers}")
        if timeout < 0:
            raise ValueError(f"timeout must be a number of seconds, or 0 to wait for ever, got {timeout}")
        if train not in ("multi_crop", "supervised"):
            raise ValueError(f"train must be 'multi_crop' or 'supervised', got {train!r}")
        if color_on not in ("worker", "device"):
            raise ValueError(f"color_on must be 'worker' or 'device', got {color_on!r}")
        if train_subset not in (None, "all", "bank"):
            raise ValueError(f"train_subset must be 'all', 'bank' or None, got {train_subset!r}")
        if rand_augment is not None and train == "multi_crop":
            raise ValueError(
                f"rand_augment={rand_augment!r} is for train='supervised'; the recipe has the changes of the views of "
                "train='multi_crop'"
            )
        if train == "supervised" and not dataset.has_labels:
            raise ValueError("train='supervised' needs labels, and the data set has none: sort the images into folders")
        self.dataset, self.recipe, self.seed, self.train = dataset, recipe, seed, train
        self.color_on, self.reduced_decoding, self.rand_augment = color_on, reduced_decoding, rand_augment
        self._rand_augment: RandAugment | None = None
        if rand_augment is not None:
            self._rand_augment = RandAugment(rand_augment, size=recipe.supervised_size, mean=recipe.mean)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.persistent_workers, self.timeout = persistent_workers, timeout
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.train_subset = train_subset or ("all" if train == "multi_crop" else "bank")
        self.accepts_other_images = self.accepts_other_content = False
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
        if self.train_subset == "bank":
            return self.dataset.bank
        return self.dataset.train if self.train == "supervised" else self.dataset.seen or self.dataset.train

    def setup(self, stage: str | None = None) -> None:
        self._say(self.dataset.describe())
        if self.num_workers > cores():
            self._say(
                f"note: num_workers={self.num_workers} loading processes on {cores()} CPU cores: more processes than "
                "cores load no faster, and each takes memory"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass over a training loader gives when no Trainer is training."""
        self._epoch = epoch

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        kind: type[TrainingViews] = TrainingViews if self.color_on == "worker" else TrainingCrops
        views = self.recipe.views
        settings: dict[str, Any] = {"reduced_decoding": self.reduced_decoding}
        if self.train == "supervised":
            kind, views = SupervisedView, (self.recipe.supervised_view,)
            settings["rand_augment"] = self._rand_augment
        training = kind(self.train_images, self.recipe, views, self.seed, **settings)
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
                f"each epoch uses {len(training) - sampler.left_out:,} of {len(training):,} images: the last "
                f"{sampler.left_out:,} do not fill a step of {sampler.window} images ({sampler.window_terms}). "
                "Which images these are changes from epoch to epoch"
            )
        return self._loader(training, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self.query_dataloader()

    def bank_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._evaluation_loader(self.dataset.bank)

    def query_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._evaluation_loader(self.dataset.query)

    def pairs_dataloader(
        self, *, same_box: bool = False, color: bool = True, seed: int | None = None
    ) -> DataLoader[dict[str, Any]]:
        """Two global views of every query image, in order: `views`, `boxes`, `flipped`, `index` (see `augment.Batch`).

        Of the images `dataset.paired`, where there are any.

        Args:
            same_box: both views show the same part of the image.
            color: with the changes of colour that the training makes.
            seed: of the views; None is that of the module.
        """
        seed = self.seed if seed is None else seed
        paired = self.dataset.paired or self.dataset.query
        images = PairsOfViews(paired, self.recipe, same_box=same_box, color=color, seed=seed)
        return self._loader(images, self.batch_size, RankShare(len(images), rank=self._rank, ranks=self._ranks))

    def hold_out(self, share: float, seed: int) -> tuple[Tensor, DataLoader[dict[str, Any]]]:
        """A part of the training images on which one of several probes is chosen.

        Args:
            share: of each class; above 0 and below 1.
            seed: of the images.

        Returns:
            Which images these are, (n,) bool by the training batches' `index`; and a loader of them, prepared as
            evaluations see images.
        """
        images = self.train_images
        if images.labels is None:
            raise ValueError("hold_out needs labels, and the training images have none")
        away = held_out(torch.tensor(images.labels), share, seed)
        return away, self._evaluation_loader(Subset(images, away.nonzero()[:, 0].tolist()))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Not in `on_after_batch_transfer`: the parameters are still in main memory here, so that no GPU is waited for.
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self.finish(moved, batch["params"]) if isinstance(batch, dict) and "crops" in batch else moved

    def finish(self, batch: dict[str, Any], params: Tensor | None = None) -> Batch:
        """Colour and normalise the crops of a batch on the device where they are.

        Args:
            batch: of `train_dataloader()` with `color_on="device"`; it stays as it is.
            params: a copy of `batch["params"]` in main memory, if there is one.

        Returns:
            The batch that `color_on="worker"` gives.

        Raises:
            ValueError: the parameters are in half precision; a Trainer with precision bf16-true makes them so.
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
        return cast(Batch, {"views": [view.to(dtype) for view in views], **batch})

    def state_dict(self) -> dict[str, Any]:
        """Everything that the order of the images depends on; part of every checkpoint."""
        return {
            "images": len(self.train_images),
            "names": self._fingerprint,
            **({} if self._content is None else {"content": self._content}),
            "batch_size": self.batch_size,
            "ranks": self._ranks,
            "accumulate": self._accumulate,
            "seed": self.seed,
            "train": self.train,
            "rand_augment": self.rand_augment,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the run that is resumed, without changing anything; evaluation may use other data.

        The images of a step may come in other batches: 2 ranks of 8, or 2 accumulated batches of 8, for 16 of one rank.

        Raises:
            ValueError: that run had other images, another number of them in a step, or another seed, so that its count
                of batches means another place in the data.
        """
        if self.accepts_other_images or (self.trainer is not None and not self.trainer.training):
            return
        was, mine = dict(state_dict), self.state_dict()
        if self.accepts_other_content or "content" not in mine:
            was.pop("content", None)
        if math.prod(was[key] for key in _WINDOW) == math.prod(mine[key] for key in _WINDOW):
            was |= {key: mine[key] for key in _WINDOW}
        other = [f"{key} was {value} and is {mine.get(key)}" for key, value in was.items() if mine.get(key) != value]
        if other:
            raise ValueError(
                f"cannot resume at the same place in the data: {'; '.join(other)}. Resume with the same "
                f"settings, or start a new run from the checkpoint's weights"
            )

    @cached_property
    def _fingerprint(self) -> str:
        return self.train_images.digest()

    @cached_property
    def _content(self) -> str | None:
        return self.train_images.content_digest()

    def _evaluation_loader(self, images: ImageDataset) -> DataLoader[dict[str, Any]]:
        share = RankShare(len(images), rank=self._rank, ranks=self._ranks)
        return self._loader(EvaluationImages(images, self.recipe), self.eval_batch_size, share)

    def _loader(
        self, data: Dataset[dict[str, Any]], batch_size: int, sampler: Sampler[Any]
    ) -> DataLoader[dict[str, Any]]:
        # A DataLoader without a generator draws from the global random state, which training must not depend on.
        generator = torch.Generator().manual_seed(self.seed)
        return ResumableLoader(
            data,
            batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            generator=generator,
            collate_fn=stack,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            pin_memory=self.pin_memory,
            timeout=self.timeout if self.num_workers > 0 else 0,
            worker_init_fn=obey_the_training,
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
        if self.trainer is None or not self.trainer.training:
            return self._epoch, 0
        batches = limited(batches, self.trainer.limit_train_batches)
        done: int = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return divmod(done, max(batches, 1))

    def _say(self, line: str) -> None:
        if self._rank == 0:
            say_once(line)
