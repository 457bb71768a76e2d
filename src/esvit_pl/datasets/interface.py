"""The interface of data sets: `(image, label or None)` by index, and a name for each image. Nothing else.

Crops, colour and batches are made elsewhere (`augment`, `data`). A data set of your own needs `__len__`, `__getitem__`,
`labels` and `name`; put it into `Splits`, and every command can use it. Override `open` if your images can be decoded
at a smaller scale.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from esvit_pl.datasets.names import digest_of

UNREADABLE_METADATA = "unreadable metadata"
SAMPLE = 256
"""How many images are looked at to notice that their content has changed."""
UNKNOWN = -1
"""In place of a class number, and in place of 1 (is in the image) and 0 (is not): nobody knows."""
Label = int | Tensor
"""A class number; or, where an image can belong to several classes, (c,) long of 1, 0 and `UNKNOWN`."""


class Picture(NamedTuple):
    """An image whose size is known and whose pixels may be decoded later."""

    size: tuple[int, int]
    """(height, width) of `decode(1)`."""
    label: Label | None
    decode: Callable[[int], Tensor]
    """Reduction 1, 2, 4 or 8 -> uint8 (3 h w), RGB, each side divided by the reduction (or a smaller one) and rounded
    up."""

    @classmethod
    def of(cls, image: Tensor, label: Label | None) -> Picture:
        """An image (3 h w) that is decoded already; `decode` returns it in full size, whatever the reduction."""
        return cls((image.shape[-2], image.shape[-1]), label, lambda reduction: image)


class ImageDataset(Dataset[tuple[Tensor, "Label | None"]], ABC):
    """A map from an index to `(image, label)`.

    `image` is uint8 (3 h w), RGB, of any size; `label` is a `Label`, or None if the data have no labels.

    >>> class Grey(ImageDataset):
    ...     labels = None
    ...     def __len__(self):
    ...         return 10
    ...     def __getitem__(self, index):
    ...         return torch.full((3, 32, 32), index, dtype=torch.uint8), None
    ...     def name(self, index):
    ...         return f"grey/{index}"
    >>> Splits(train=Grey()).describe()
    'data: 10 images to train on, no labels; there is no val, so k-NN compares 1 of them (query), chosen by ...'
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]: ...

    def open(self, index: int) -> Picture:
        """The same image and label. An override can decode later, when it is known how many pixels are needed."""
        return Picture.of(*self[index])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image. An override can read a header instead of pixels."""
        return self.open(index).size

    @property
    @abstractmethod
    def labels(self) -> list[int] | None:
        """The class of every image, without decoding any; None if the data have no labels, or images have several."""

    @property
    def memberships(self) -> np.ndarray | None:
        """(n c) int8, where an image can belong to several classes: 1 it does, 0 it does not, `UNKNOWN`; else None."""
        return None

    @abstractmethod
    def name(self, index: int) -> str:
        """A name that is the same on every machine: the path below the data set's root, with forward slashes."""

    @property
    def has_labels(self) -> bool:
        """Whether there are `labels`. An override can tell without making a list of them."""
        return self.labels is not None or self.memberships is not None

    def digest(self) -> str:
        """A hash of all names. Every checkpoint holds it, because a training goes on with the same images only."""
        return digest_of(map(self.name, range(len(self))))

    def content_digest(self) -> str | None:
        """A hash of what a sample of the images holds, without decoding any; None where that cannot be told.

        Every checkpoint holds it, beside the `digest` of the names. An override can use `sampled`.
        """
        return None

    def places(self) -> np.ndarray:
        """A number in 0-1 for each image, see `places_of`."""
        return places_of(map(self.name, range(len(self))))

    def problems(self) -> list[tuple[str, str]]:
        """(name, sentence) of every image that could not be read so far, or `UNREADABLE_METADATA` in place of it."""
        return []


class LabelledDataset(ImageDataset):
    """A data set that holds its class numbers in memory, or its `memberships` (n c), or None without labels.

    >>> class Grey(LabelledDataset):
    ...     def __len__(self):
    ...         return 10
    ...     def __getitem__(self, index):
    ...         return torch.full((3, 32, 32), index, dtype=torch.uint8), self.label(index)
    ...     def name(self, index):
    ...         return f"grey/{index}"
    >>> Grey([0, 1] * 5)[3][1], Grey(None).labels
    (1, None)
    >>> Grey([[1, 1, 0]] * 10)[3][1]  # of the first two of three classes
    tensor([1, 1, 0])

    Raises:
        ValueError: a membership is neither 1, 0 nor `UNKNOWN`.
    """

    def __init__(self, labels: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None) -> None:
        # One block of numbers instead of a million Python objects: forked workers share it without copying.
        self._labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        if self._labels is not None and self._labels.ndim == 2:
            if not np.isin(self._labels, (0, 1, UNKNOWN)).all():
                raise ValueError(f"memberships must be 1, 0 or {UNKNOWN} (unknown), got {np.unique(self._labels)}")
            self._labels = self._labels.astype(np.int8)

    @property
    def labels(self) -> list[int] | None:
        return self._labels.tolist() if self._labels is not None and self._labels.ndim == 1 else None

    @property
    def memberships(self) -> np.ndarray | None:
        return self._labels if self._labels is not None and self._labels.ndim == 2 else None

    @property
    def has_labels(self) -> bool:
        return self._labels is not None

    def label(self, index: int) -> Label | None:
        """The label of one image."""
        if self._labels is None:
            return None
        return int(self._labels[index]) if self._labels.ndim == 1 else torch.from_numpy(self._labels[index]).long()


class ArrayDataset(LabelledDataset):
    """Images in memory: `images` uint8 (n 3 h w), and `names` and `labels` (or None) of the same length; labels as in
    `LabelledDataset`.

    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> ArrayDataset(images, ["a", "b"], labels=[0, 1])[1][1]
    1

    Raises:
        ValueError: `images` has another type or shape, or the lengths differ.
    """

    def __init__(
        self,
        images: Tensor,
        names: Sequence[str],
        labels: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (n 3 h w), got {images.dtype} {tuple(images.shape)}")
        if len(names) != len(images) or (labels is not None and len(labels) != len(images)):
            got = f"{len(images)} images, {len(names)} names, {'no' if labels is None else len(labels)} labels"
            raise ValueError(f"images, names and labels must have the same length, got {got}")
        super().__init__(labels)
        self._images, self._names = images, list(names)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        return self._images[index], self.label(index)

    def name(self, index: int) -> str:
        return self._names[index]

    def content_digest(self) -> str:
        return sampled(len(self), lambda index: self._images[index].numpy().tobytes())


class Subset(ImageDataset):
    """The images of `dataset` at `indices`, in that order.

    >>> images = ArrayDataset(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), ["a", "b", "c"])
    >>> Subset(images, [2, 0]).name(0)
    'c'
    """

    def __init__(self, dataset: ImageDataset, indices: Sequence[int] | np.ndarray) -> None:
        # One block of numbers, as the labels above.
        self.dataset, self._indices = dataset, np.array(indices, dtype=np.int64)

    @property
    def indices(self) -> list[int]:
        """Which images these are."""
        indices: list[int] = self._indices.tolist()
        return indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        return self.dataset[int(self._indices[index])]

    def open(self, index: int) -> Picture:
        return self.dataset.open(int(self._indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(int(self._indices[index]))

    @property
    def labels(self) -> list[int] | None:
        labels = self.dataset.labels
        return None if labels is None else [labels[index] for index in self.indices]

    @property
    def memberships(self) -> np.ndarray | None:
        memberships = self.dataset.memberships
        return None if memberships is None else memberships[self._indices]

    def name(self, index: int) -> str:
        return self.dataset.name(int(self._indices[index]))

    @property
    def has_labels(self) -> bool:
        return self.dataset.has_labels

    def content_digest(self) -> str | None:
        return self.dataset.content_digest()

    def problems(self) -> list[tuple[str, str]]:
        return self.dataset.problems()


class Joined(ImageDataset):
    """The images of several data sets, one after the other.

    >>> one, two = (ArrayDataset(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), names, [0, 1]) for names in ("ab", "cd"))
    >>> both = Joined([one, two])
    >>> both.name(2), both.labels
    ('c', [0, 1, 0, 1])
    """

    def __init__(self, parts: Sequence[ImageDataset]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        part, inside = self._place(index)
        return self.parts[part][inside]

    def open(self, index: int) -> Picture:
        part, inside = self._place(index)
        return self.parts[part].open(inside)

    def size(self, index: int) -> tuple[int, int]:
        part, inside = self._place(index)
        return self.parts[part].size(inside)

    @property
    def labels(self) -> list[int] | None:
        found = [labels for part in self.parts if (labels := part.labels) is not None]
        return [label for labels in found for label in labels] if len(found) == len(self.parts) else None

    @property
    def memberships(self) -> np.ndarray | None:
        found = [rows for part in self.parts if (rows := part.memberships) is not None]
        return np.concatenate(found) if len(found) == len(self.parts) else None

    def name(self, index: int) -> str:
        part, inside = self._place(index)
        return self.parts[part].name(inside)

    def content_digest(self) -> str | None:
        found = [digest for part in self.parts if (digest := part.content_digest()) is not None]
        return digest_of(found) if len(found) == len(self.parts) else None

    def problems(self) -> list[tuple[str, str]]:
        return [problem for part in self.parts for problem in part.problems()]

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return part, index - int(self.ends[part] - len(self.parts[part]))


@dataclass(frozen=True)
class Splits:
    """A data set as the commands use it.

    Pretraining sees `train`. k-NN and the linear probe learn from the `bank` and are measured on the `query`. With a
    `val`, these are `train` and `val`. Without one they are two parts of `train`: a hash of each image's name decides,
    and about `val_fraction` of the images become the query. So a folder is split in the same way on every machine, and
    an added image does not move another one. `classes` are the names of the classes, None without labels.

    With a `test`, the query is the test and the bank is all the rest: what is tuned is tuned on `val`, then `train` and
    `val` together are learnt, and the test is looked at once.

    >>> images = ArrayDataset(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), [f"{i}.png" for i in range(20)])
    >>> splits = Splits(images, val_fraction=0.25)
    >>> len(splits.bank) + len(splits.query), splits.has_labels
    (20, False)
    """

    train: ImageDataset
    val: ImageDataset | None = None
    classes: list[str] | None = None
    val_fraction: float = 0.1
    notes: tuple[str, ...] = ()
    """Further lines for the user: how the data were read, what was left out."""
    seen: ImageDataset | None = None
    """What pretraining sees in place of `train`: scenes that are made of it."""
    paired: ImageDataset | None = None
    """Images from which pairs of views are cut to measure correspondence, in place of the query."""
    test: ImageDataset | None = None
    """What the query is, where a data set has three splits."""
    metric: str = "top1"
    """How the data set counts right answers, one of those of `metrics.measure`."""

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {self.val_fraction}")
        for name, images in self._named.items():
            if len(images) == 0:
                raise ValueError(f"the {name} split holds no image")
            if images.has_labels != self.train.has_labels:
                raise ValueError(f"train and {name} must both have labels, or neither of them: only one has")
            if (images.memberships is None) != (self.train.memberships is None):
                raise ValueError(f"train and {name} must both have one class an image, or both have memberships")
        if self.multi_label != (self.metric == "map11"):
            raise ValueError(f"memberships in several classes and metric=map11 go together, got metric={self.metric}")
        if self.train.memberships is not None and len(self.classes or ()) != self.train.memberships.shape[1]:
            raise ValueError(
                f"memberships in {self.train.memberships.shape[1]} classes need classes= with as many names, got "
                f"{len(self.classes or ())}"
            )

    @property
    def _named(self) -> dict[str, ImageDataset]:
        """The splits that there are."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in parts.items() if images is not None}

    @property
    def bank(self) -> ImageDataset:
        """The images whose labels k-NN and the linear probe may use."""
        if self.test is not None:
            return self._all_but_test
        return self.train if self.val is not None else self._parts[0]

    @property
    def query(self) -> ImageDataset:
        """The images that k-NN and the linear probe are measured on."""
        if self.test is not None:
            return self.test
        return self.val if self.val is not None else self._parts[1]

    @property
    def tuned_from(self) -> int | None:
        """The bank's images from this number on are the ones on which settings are chosen; None: any part of it."""
        return None if self.test is None or self.val is None else len(self.train)

    @property
    def has_labels(self) -> bool:
        return self.train.has_labels

    @property
    def multi_label(self) -> bool:
        """Whether an image can belong to several classes."""
        return self.train.memberships is not None

    @cached_property
    def _all_but_test(self) -> ImageDataset:
        return self.train if self.val is None else Joined([self.train, self.val])

    @cached_property
    def _parts(self) -> tuple[ImageDataset, ImageDataset]:
        return split_by_name(self.train, self.val_fraction)

    def problems(self) -> list[tuple[str, str, str]]:
        """(split, name, sentence), split "train", "val" or "test", of the images that could not be read so far."""
        return [(part, name, sentence) for part, images in self._named.items() for name, sentence in images.problems()]

    def describe(self) -> str:
        """A line with the numbers of images and classes, and where bank and query come from; then the `notes`."""
        what = f"{len(self.classes)} classes" if self.classes else ("with labels" if self.has_labels else "no labels")
        what += ", several in an image" if self.multi_label else ""
        if self.test is not None:
            tuned = "" if self.val is None else f" and the {len(self.val):,} of val, on which settings are chosen"
            origin = f"bank: the {len(self.train):,} training images{tuned}; query: the {len(self.test):,} of test"
        elif self.val is not None:
            origin = f"bank: the {len(self.bank):,} training images, query: the {len(self.query):,} of val"
        elif len(self.train) == 1:
            origin = "too few for a bank and a query"
        else:
            origin = (
                f"there is no val, so k-NN compares {len(self.query):,} of them (query), chosen by their names, "
                f"with the other {len(self.bank):,} (bank)"
            )
        return "\n".join([f"data: {len(self.train):,} images to train on, {what}; {origin}", *self.notes])


def split_by_name(dataset: ImageDataset, fraction: float) -> tuple[Subset, Subset]:
    """`(rest, part)`: an image belongs to `part` if a hash of its name, read as a number in 0-1, is below `fraction`.

    Neither is ever empty: the image with the smallest hash always belongs to `part`, that with the largest to `rest`.

    Raises:
        ValueError: fewer than two images.
    """
    if len(dataset) < 2:
        raise ValueError(f"a bank and a query need two images or more, got {len(dataset)}")
    places = dataset.places()
    order = np.argsort(places, kind="stable")
    cut = min(max(int((places < fraction).sum()), 1), len(dataset) - 1)
    return Subset(dataset, np.sort(order[cut:])), Subset(dataset, np.sort(order[:cut]))


def sampled(images: int, content: Callable[[int], bytes]) -> str:
    """A hash of the content of `SAMPLE` images at most, evenly spread over all; the same for the same images."""
    digest = blake2b(digest_size=8)
    for index in np.linspace(0, images - 1, min(images, SAMPLE)).astype(int):
        digest.update(blake2b(content(int(index))).digest())
    return digest.hexdigest()


def places_of(names: Iterable[str]) -> np.ndarray:
    """float64: for each name a number in 0-1 that depends on it alone."""
    return np.fromiter(map(_place, names), np.float64)


def _place(name: str) -> float:
    """NFC, because macOS stores accents in another form."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / 2**64
