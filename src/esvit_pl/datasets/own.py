"""Data that a program holds, as `Splits`: lists of files, data sets of torch, torchvision and Hugging Face, tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Subset as TorchSubset

from esvit_pl.datasets.as_uint8 import CHANNELS, as_uint8
from esvit_pl.datasets.bad_images import Problems, Reading
from esvit_pl.datasets.folder import FolderDataset, folder
from esvit_pl.datasets.interface import (
    UNREADABLE_METADATA,
    ImageDataset,
    Joined,
    Label,
    LabelledDataset,
    Picture,
    Splits,
    Subset,
)
from esvit_pl.datasets.labels import Labels, number_labels, read_labels
from esvit_pl.datasets.layout import split_named
from esvit_pl.datasets.listing import TABLES, ending, shown
from esvit_pl.datasets.table import Rows, check_files, splits_of_rows, table

ACCEPTED = (
    "a folder, the name of a dataset, a CSV, TSV or Parquet file, a DataFrame with a column of paths, a list of paths, "
    "of images, or of pairs (path or image, label), a torch Dataset of images or of pairs (image, label), a Hugging "
    "Face dataset, datasets.Splits, or two of these for training and evaluation: (train, val) or "
    "{'train': ..., 'val': ...}"
)


def splits_of(data: Any, *, val_fraction: float = 0.1, **reading: Any) -> Splits:
    """Whatever holds images, as the data sets of a training; docs/data.md lists what is accepted.

    >>> images = [(torch.zeros(3, 8, 8), "cat"), (torch.ones(3, 8, 8), "dog")]
    >>> splits = splits_of(images)
    >>> splits.classes, splits.train[1][0].max().item(), splits.train[1][1]
    (['cat', 'dog'], 255, 1)

    Args:
        data: nothing of it is copied; images are asked for when they are needed, by several processes at once.
        val_fraction: the share of images that become the query where there is no val.
        reading: of `Reading`: value_range, background, max_pixels, on_bad_image, bad_image_budget.

    Raises:
        ValueError: it is something else, holds no image, or its first image or a label cannot be read.
    """
    if isinstance(data, Splits):
        return data
    how = Reading(**reading)
    if isinstance(data, (str, os.PathLike)):
        path = os.fspath(data)
        if ending(path) in TABLES:
            return table(path, val_fraction=val_fraction, **reading)
        return folder(path, val_fraction=val_fraction, **reading)
    if _is_frame(data):
        rows = Rows(_Columns(data), lambda index: f"row {index} of the DataFrame", "the DataFrame")
        asked = dict.fromkeys(("path_column", "label_column", "split_column"))
        return splits_of_rows(rows, asked, "", val_fraction=val_fraction, reading=how)
    given, left_out = _by_split(data)
    parts = {}
    for split, part in given.items():
        try:
            parts[split] = _source(part, how, split)
        except ValueError as error:
            if not isinstance(data, tuple) or len(given) == 1 or _is_path(part):
                raise
            pairs = "Two in a tuple are (train, val); labels go with their images: list(zip(images, labels))"
            raise ValueError(f"{error}. {pairs}") from error
    train, val = parts["train"].labels, parts.get("val")
    if val is not None and val.labels.values is None and train.values is not None and _is_folder(given["val"]):
        # A single class folder of val is a class, because train has some.
        classes_alone = folder(given["val"], layout="classes", **reading)
        parts["val"] = _of_images(classes_alone.train, classes_alone.classes, list(classes_alone.notes))
    classes, numbers = number_labels({split: part.labels for split, part in parts.items()})
    images = {split: part.build(numbers[split]) for split, part in parts.items()}
    notes = dict.fromkeys(note for part in parts.values() for note in part.notes)
    return Splits(images["train"], images.get("val"), classes, val_fraction, (*notes, *left_out))


@dataclass
class _Source:
    """Images of one split before their labels are numbered."""

    build: Callable[[list[int] | None], ImageDataset]
    labels: Labels
    notes: list[str] = field(default_factory=list)


class OwnImages(LabelledDataset):
    """The images of anything that is indexed: a torch Dataset, a Hugging Face dataset, a list, an array.

    >>> images = OwnImages([torch.zeros(3, 8, 8)], Reading())
    >>> images[0][0].dtype, images.name(0)
    (torch.uint8, '00000000')

    Args:
        data: its items are images, pairs (image, label), or dicts with an image in `column`.
        reading: how images become RGB, and what happens to one that cannot be read.
        labels: class numbers, or None.
    """

    def __init__(
        self, data: Any, reading: Reading, labels: Sequence[int] | None = None, column: str | None = None
    ) -> None:
        super().__init__(labels)
        self.data, self.reading, self.column = data, reading, column
        self._problems = Problems(len(data), reading)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        with self._problems.watch(index):
            return self.image(index), self.label(index)

    def image(self, index: int) -> Tensor:
        """uint8 (3 h w).

        Raises:
            ValueError: the item cannot be read, or holds no image; the message says which one and why.
        """
        try:
            item = self.data[index]
            image = item[self.column] if self.column is not None else _image_of(item)
            return as_uint8(image, self.reading, self._problems.told(index))
        except Exception as error:  # a data set of other people's may raise anything
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"item {index} of the data ({type(self.data).__name__}): {kind}{error}") from error

    def name(self, index: int) -> str:
        return f"{index:08d}"

    def problems(self) -> list[tuple[str, str]]:
        problems = [(self.name(index), "the item could not be read") for index in self._problems.broken]
        return problems + [(self.name(index), UNREADABLE_METADATA) for index in self._problems.metadata]


class Relabelled(LabelledDataset):
    """The same images with other labels, or without labels.

    >>> images = Relabelled(OwnImages([torch.zeros(3, 8, 8)], Reading()), [4])
    >>> images[0][1], images.labels
    (4, [4])
    """

    def __init__(self, images: ImageDataset, labels: Sequence[int] | None) -> None:
        super().__init__(labels)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        return self.images[index][0], self.label(index)

    def open(self, index: int) -> Picture:
        return self.images.open(index)._replace(label=self.label(index))

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(index)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def problems(self) -> list[tuple[str, str]]:
        return self.images.problems()


class Numbered(Joined):
    """The same with names that say the number of the data set: "1/cat.jpg".

    >>> images = OwnImages([torch.zeros(3, 8, 8)], Reading())
    >>> Numbered([images, images]).name(1)
    '1/00000000'
    """

    def name(self, index: int) -> str:
        return f"{self._place(index)[0]}/{super().name(index)}"

    def problems(self) -> list[tuple[str, str]]:
        found = ((number, *problem) for number, part in enumerate(self.parts) for problem in part.problems())
        return [(f"{number}/{name}", sentence) for number, name, sentence in found]


# -- splits


def _by_split(data: Any) -> tuple[dict[str, Any], list[str]]:
    """The data of train and perhaps val, and a line about what is not read."""
    if isinstance(data, Mapping):
        found: dict[str, Any] = {}
        others = []
        for key, value in data.items():
            split = split_named(str(key))
            if split in found:
                raise ValueError(f"{_and(list(data))} name the same split twice; give one of them")
            if split is None or split == "test":
                others.append(str(key))
            else:
                found[split] = value
        if "train" not in found:
            raise ValueError(f"a dict of data needs the key 'train', and may have 'val'; got {_and(list(data))}")
        return found, [f"left out: {', '.join(map(shown, others))} (never read)"] if others else []
    if isinstance(data, tuple) and not hasattr(data, "_fields") and len(data) == 2 and not _is_image(data[0]):
        return {"train": data[0], "val": data[1]}, []
    return {"train": data}, []


# -- what kind of data it is


def _source(data: Any, reading: Reading, split: str) -> _Source:
    """One split of any kind."""
    if isinstance(data, (str, os.PathLike, Splits)) or _is_frame(data):
        splits = splits_of(data, **vars(reading))
        if splits.val is not None:
            raise ValueError(f"what is given for one split holds train and val itself: {_brief(data)}; give it alone")
        return _of_images(splits.train, splits.classes, list(splits.notes))
    by_index = hasattr(data, "__getitem__") and hasattr(data, "__len__") and getattr(data, "ndim", 1) > 0
    if isinstance(data, (IterableDataset, Mapping, bytes)) or not by_index:
        raise _refusal(data)
    if not len(data):
        raise ValueError(f"the {split} split ({type(data).__name__}) holds no image")
    if isinstance(data, ImageDataset):
        return _of_images(data, getattr(data, "classes", None), [])
    if isinstance(data, TorchSubset):
        return _of_subset(data, reading, split)
    if isinstance(data, ConcatDataset):
        return _of_parts(data, reading, split)
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return _of_hugging_face(data, reading)
    if _is_image_folder(data):
        return _of_image_folder(data, reading)
    if hasattr(data, "tolist") and getattr(data, "ndim", 1) == 1 and not isinstance(data, torch.Tensor):
        data = data.tolist()  # a Series of paths, or an array of them
    if isinstance(data, (list, tuple)):
        listed = _of_paths(data, reading)
        if listed is not None:
            return listed
    return _of_items(data, reading)


def _of_images(images: ImageDataset, classes: list[str] | None, notes: list[str]) -> _Source:
    return _Source(lambda numbers: Relabelled(images, numbers), Labels(images.labels, classes), notes)


def _of_paths(data: Sequence[Any], reading: Reading) -> _Source | None:
    """A list of paths, or of pairs (path, label); None for other lists."""
    if _is_path(data[0]):
        paths, labels = list(data), None
    elif isinstance(data[0], (tuple, list)) and len(data[0]) == 2 and _is_path(data[0][0]):
        wrong = next((index for index, pair in enumerate(data) if not _is_pair(pair)), None)
        if wrong is not None:
            raise ValueError(
                f"item {wrong} of the list is no pair (path, label) as the first is: {_brief(data[wrong])}"
            )
        paths, labels = [path for path, _ in data], [label for _, label in data]
    else:
        return None
    wrong = next((index for index, path in enumerate(paths) if not _is_path(path)), None)
    if wrong is not None:
        raise ValueError(f"item {wrong} of the list is no path as the first is: {_brief(paths[wrong])}")
    files = [os.path.abspath(os.path.expanduser(os.fsdecode(path))) for path in paths]
    check_files("", files, "item {}".format)
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    names = [Path(os.path.relpath(file, root)).as_posix() for file in files]
    return _Source(lambda numbers: FolderDataset(root, names, numbers, reading=reading), Labels(labels))


def _is_image_folder(data: Any) -> bool:
    """torchvision's ImageFolder, or a DatasetFolder, whose files are images that it opens in its usual way."""
    loader = getattr(data, "loader", None)
    usual = getattr(loader, "__name__", "") == "default_loader" and "torchvision" in getattr(loader, "__module__", "")
    return usual and hasattr(data, "samples") and hasattr(data, "classes")


def _of_image_folder(data: Any, reading: Reading) -> _Source:
    root, labels = os.path.abspath(data.root), [label for _, label in data.samples]
    names: list[str] | None = list(data.classes)
    files = [Path(os.path.relpath(path, root)).as_posix() for path, _ in data.samples]
    if data.target_transform is not None:
        labels, names = [data.target_transform(label) for label in labels], None
    notes = [f"layout: the files of {type(data).__name__}"]
    if data.transform is not None:
        notes.append("its transform is not used: augment= says what happens to images")
    return _Source(
        lambda numbers: FolderDataset(root, files, numbers, reading=reading), Labels(labels, names), ["; ".join(notes)]
    )


def _of_subset(data: Any, reading: Reading, split: str) -> _Source:
    whole, indices = _source(data.dataset, reading, split), [int(index) for index in data.indices]
    values = None if whole.labels.values is None else [whole.labels.values[index] for index in indices]
    return _Source(
        lambda numbers: Relabelled(Subset(whole.build(None), indices), numbers),
        Labels(values, whole.labels.names),
        whole.notes,
    )


def _of_parts(data: Any, reading: Reading, split: str) -> _Source:
    parts = [_source(part, reading, split) for part in data.datasets]
    notes = [note for part in parts for note in part.notes]
    each = [read_labels(part.labels) for part in parts]
    if any(labels is None for labels in each) and not all(labels is None for labels in each):
        raise ValueError("some parts of the ConcatDataset have labels and others have none; give all of them labels")
    labels = [label for found in each if found is not None for label in found] or None
    return _Source(
        lambda numbers: Relabelled(Numbered([part.build(None) for part in parts]), numbers), Labels(labels), notes
    )


def _of_hugging_face(data: Any, reading: Reading) -> _Source:
    """A `datasets.Dataset`, known by its interface: `column_names`, `features`, rows as dicts, columns by name."""
    features, columns = data.features or {}, list(data.column_names)
    kinds = {name: type(features.get(name)).__name__ for name in columns}
    image = next((name for name in ("image", "img") if name in columns), None)
    image = image or next((name for name in columns if kinds[name] == "Image"), None)
    if image is None:
        raise ValueError(f"the data set has no column 'image' or 'img'; rename one of {_and(columns)}")
    label = next((name for name in ("label", "labels") if name in columns), None)
    if label is None:
        classed = [name for name in columns if kinds[name] == "ClassLabel"]
        if len(classed) > 1:
            raise ValueError(
                f"{_and(classed)} may be the labels; say which: data.rename_column({classed[0]!r}, 'label')"
            )
        label = classed[0] if classed else None
    labels = None if label is None else list(data[label])
    names = None if label is None else getattr(features.get(label), "names", None)
    _first_item(OwnImages(data, reading, column=image))
    return _Source(lambda numbers: OwnImages(data, reading, numbers, image), Labels(labels, names))


def _of_items(data: Any, reading: Reading) -> _Source:
    """Anything that gives images, or pairs (image, label), by index."""
    if isinstance(data, (np.ndarray, Tensor)) and data.ndim == 3 and (data.shape[0] == 3 or data.shape[2] in CHANNELS):
        raise ValueError(
            f"data is one image of shape {tuple(data.shape)}; give several, as (n h w c) or (n c h w), grey ones as "
            "(n h w), or a list of images"
        )
    first = _first_item(OwnImages(data, reading))
    labels: Sequence[Any] | None = None
    notes: list[str] = []
    if _has_label(first):
        labels = None if getattr(data, "target_transform", None) is not None else _known_labels(data)
        if labels is None:
            labels = [_label_at(data, index) for index in range(len(data))]
            if not isinstance(data, (list, tuple)):
                notes = [
                    f"labels: read once from all {len(data):,} items of {type(data).__name__}; a list of them as its "
                    "attribute targets spares that"
                ]
    names = getattr(data, "classes", None)
    numbered = labels is not None and not any(isinstance(label, str) for label in labels)
    names = list(names) if names is not None and numbered else None
    return _Source(lambda numbers: OwnImages(data, reading, numbers), Labels(labels, names), notes)


def _known_labels(data: Any) -> Sequence[Any] | None:
    """The labels of all items where the data set tells them, as torchvision's do."""
    if isinstance(data, TensorDataset):
        labels: list[Any] = data.tensors[1].tolist()
        return labels
    for name in ("targets", "labels"):
        found = getattr(data, name, None)
        if found is not None and hasattr(found, "__len__") and len(found) == len(data):
            return found.tolist() if hasattr(found, "tolist") else list(found)
    return None


# -- items


def _image_of(item: Any) -> Any:
    if isinstance(item, Mapping) and not {"bytes", "path"} & item.keys():
        column = next((name for name in ("image", "img") if name in item), None)
        if column is None:
            raise ValueError(f"an item is a dict without the key 'image' or 'img': {_and(list(item))}")
        return item[column]
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise ValueError(f"an item is an image or a pair (image, label), got {len(item)} things")
        return item[0]
    return item


def _has_label(item: Any) -> bool:
    return (isinstance(item, (tuple, list)) and len(item) == 2) or (isinstance(item, Mapping) and _key_of(item) != "")


def _key_of(item: Mapping[str, Any]) -> str:
    return next((name for name in ("label", "labels") if name in item), "")


def _label_at(data: Any, index: int) -> Any:
    try:
        item = data[index]
        return item[_key_of(item)] if isinstance(item, Mapping) else item[1]
    except Exception as error:  # a data set of other people's may raise anything
        raise ValueError(
            f"the label of item {index} of the data ({type(data).__name__}) cannot be read: {type(error).__name__}: "
            f"{error}. With a list of all labels as its attribute targets, no image is opened for its label"
        ) from error


def _first_item(images: OwnImages) -> Any:
    """The first item that can be read: what cannot be read is said before a training is started on it."""
    allowed = images.reading.allowed(len(images))
    for index in range(allowed):
        with suppress(ValueError):
            images.image(index)
            return images.data[index]
    images.image(allowed)
    return images.data[allowed]


class _Columns(Mapping[str, Any]):
    """The columns of a DataFrame of pandas or polars, as lists."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def __getitem__(self, name: str) -> list[Any]:
        return list(self.frame[name])

    def __iter__(self) -> Any:
        return iter(list(self.frame.columns))

    def __len__(self) -> int:
        return len(self.frame.columns)


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "shape") and not hasattr(data, "column_names")


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _is_folder(value: Any) -> bool:
    return _is_path(value) and os.path.isdir(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and _is_path(value[0])


def _is_image(value: Any) -> bool:
    return isinstance(value, (Image.Image, np.ndarray, Tensor)) and getattr(value, "ndim", 3) in (2, 3)


def _refusal(data: Any) -> ValueError:
    if hasattr(data, "__next__"):
        why = "an iterator is empty after one pass; make a list of it"
    elif isinstance(data, DataLoader):
        why = "batches are made here; give its dataset, without transforms that crop or normalise"
    elif isinstance(data, IterableDataset) or hasattr(data, "column_names"):
        why = "a stream has no length, and cannot be shuffled; give a data set with __len__ and __getitem__"
    else:
        why = f"it must be {ACCEPTED}"
    return ValueError(f"data is {type(data).__name__}, {_brief(data)}: {why}")


def _brief(value: Any) -> str:
    text = shown(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _and(words: Sequence[Any]) -> str:
    return ", ".join(shown(str(word)) for word in words)
