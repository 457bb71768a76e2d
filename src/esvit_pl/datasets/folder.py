"""Images in a folder, with or without labels, and ImageNet's usual layout. `layout` decides what a folder means."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from esvit_pl.datasets import index_file
from esvit_pl.datasets.arranged import Images
from esvit_pl.datasets.bad_images import Problems, Reading
from esvit_pl.datasets.decode import decode, open_picture, size_of
from esvit_pl.datasets.interface import UNREADABLE_METADATA, Label, LabelledDataset, Picture, Splits, sampled
from esvit_pl.datasets.listing import TABLES, ending, shown
from esvit_pl.datasets.names import Names

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
BEGINNING = 2**18
"""Bytes of a file that `content_digest` reads."""


class FolderDataset(LabelledDataset):
    """The image files `names` (paths below `root`), with a class number for each in `labels`, or None without labels.

    Files are opened when they are asked for, and become RGB, as `reading` says.

    >>> images = FolderDataset("photos", ["cat/1.jpg", "dog/1.jpg"], labels=[0, 1])
    >>> len(images), images.name(1), images.labels
    (2, 'dog/1.jpg', [0, 1])
    """

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str] | np.ndarray,
        labels: Sequence[int] | np.ndarray | None = None,
        *,
        reading: Reading | None = None,
    ) -> None:
        super().__init__(labels)
        self.root, self.reading = str(root), reading or Reading()
        self._names = names if isinstance(names, Names) else Names.of(names)
        self._places: np.ndarray | None = None
        self._origin: tuple[Path, str] | None = None
        self._problems = Problems(len(self._names), self.reading)

    @classmethod
    def of_index(cls, root: str | Path, index: Path | None, split: str, images: Images, reading: Reading) -> Self:
        """Those of a split, which lie in an index file unless it is None."""
        data = cls(os.path.join(root, images.root), images.names, images.labels, reading=reading)
        data._places = images.places
        data._origin = None if index is None else (index, split)
        return data

    def __getstate__(self) -> dict[str, Any]:
        """A process that gets the data set by pickling maps the index file itself."""
        in_the_file = ("_names", "_labels", "_places") if self._origin is not None else ()
        return {name: value for name, value in vars(self).items() if name not in in_the_file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._origin is not None:
            path, split = self._origin
            images: Images = getattr(index_file.read(path), split)
            self._names, self._labels, self._places = images.names, images.labels, images.places

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, Label | None]:
        with self._problems.watch(index):
            return decode(self.path(index), self.reading, self._problems.told(index)), self.label(index)

    def open(self, index: int) -> Picture:
        with self._problems.watch(index):
            path, told = self.path(index), self._problems.told(index)
            picture = open_picture(path, self.label(index), self.reading, told)

        def decoded(reduction: int) -> Tensor:
            with self._problems.watch(index):
                return picture.decode(reduction)

        return picture._replace(decode=decoded)

    def size(self, index: int) -> tuple[int, int]:
        return size_of(self.path(index), self.reading)

    def name(self, index: int) -> str:
        return self._names[index]

    def digest(self) -> str:
        return self._names.digest()

    def content_digest(self) -> str:
        return sampled(len(self), lambda index: _beginning(self.path(index)))

    def places(self) -> np.ndarray:
        return super().places() if self._places is None else self._places

    def path(self, index: int) -> str:
        """The image's file."""
        return os.path.join(self.root, self.name(index))

    def problems(self) -> list[tuple[str, str]]:
        reasons = [(index, self._reason(index)) for index in self._problems.broken]
        reasons += [(index, UNREADABLE_METADATA) for index in self._problems.metadata]
        return [(self.name(index), reason) for index, reason in reasons]

    def _reason(self, index: int) -> str:
        """Asked of the file again: the loading process that met the error is another one, or has gone."""
        try:
            decode(self.path(index), self.reading, lambda sentence: None)
        except ValueError as error:
            return str(error)
        return "it could not be read then, and can be read now"


def _beginning(path: str) -> bytes:
    """Size and first bytes of a file; nothing of one that cannot be read, which is told when it is decoded."""
    try:
        with open(path, "rb") as file:
            return b"%d " % os.fstat(file.fileno()).st_size + file.read(BEGINNING)
    except OSError:
        return b""


def folder(
    root: str | Path,
    *,
    layout: str = "auto",
    labels: str = "auto",
    val_fraction: float = 0.1,
    index: str = "auto",
    **reading: Any,
) -> Splits:
    """All images below `root`, in the order of their names; docs/data.md says what a folder means.

    Args:
        layout: "auto"; "classes": the first folders are classes, whatever their names; "flat": all images, without
            labels; "splits": the folders called train and val are splits, whatever lies beside them.
        labels: whether folders within a split are classes: "auto", "folders" or "none".
        val_fraction: the share of images that become the query where there is no `val` folder.
        index: "auto" lists a folder of many images once, and keeps the list in a file; "rebuild" lists it again,
            "none" lists it each time and keeps nothing.
        reading: of `Reading`: value_range, background, max_pixels, on_bad_image, bad_image_budget.

    Raises:
        ValueError: `root` does not exist, is not a folder, holds a run or no image; it can be read in two ways; `val`
            has classes that `train` does not have.
    """
    how = Reading(**reading)
    path = existing(root)
    found, kept = index_file.images_of(path, layout=layout, labels=labels, index=index)
    train = FolderDataset.of_index(path, kept, "train", found.train, how)
    val = None if found.val is None else FolderDataset.of_index(path, kept, "val", found.val, how)
    return Splits(train, val, found.classes, val_fraction, notes=found.notes)


def imagenet(root: str | Path, *, index: str = "auto", **reading: Any) -> Splits:
    """ImageNet-1k in its usual layout: `root/train/<wnid>/*.JPEG` and `root/val/<wnid>/*.JPEG`.

    Args:
        index: as in `folder`.
        reading: as in `folder`.

    Raises:
        ValueError: one of the two folders is missing, or the validation images are not sorted into class folders.
    """
    root = existing(root)
    missing = [name for name in ("train", "val") if not (root / name).is_dir()]
    if missing:
        raise ValueError(f"'{root}' has no folder '{missing[0]}': ImageNet is read from train/<wnid>/ and val/<wnid>/")
    return folder(root, layout="splits", labels="folders", index=index, **reading)


def existing(root: str | Path) -> Path:
    """The folder `root`, with ``~`` for the home folder.

    Raises:
        ValueError: it is no folder; the message says what it is instead.
    """
    if root is None or str(root).strip() in ("", "None"):
        raise ValueError("root is empty; give the folder of your images (dataset.root=FOLDER; . is the one you are in)")
    path = Path(str(root)).expanduser()
    try:
        about = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"the folder '{shown(path)}' does not exist") from None
        raise ValueError(f"the folder '{shown(path)}' cannot be opened: {getattr(error, 'strerror', error)}") from error
    if stat.S_ISDIR(about.st_mode):
        return path
    kind = ending(path.name)
    if kind in ARCHIVES:
        raise ValueError(f"'{shown(path)}' is an archive, which is not read yet; unpack it, and give the folder")
    if kind in TABLES:
        raise ValueError(f"'{shown(path)}' is a table; it is read by dataset=table dataset.file='{shown(path)}'")
    raise ValueError(f"'{shown(path)}' is a file; give a folder of images")


def all_there(home: Path, names: Sequence[str]) -> Sequence[str]:
    """The same names, paths below `home`.

    Raises:
        ValueError: some of them lead to no file.
    """
    missing = [name for name in names if not (home / name).is_file()]
    if missing:
        raise ValueError(f"{len(missing):,} of {len(names):,} files are missing in '{shown(home)}', first {missing[0]}")
    return names
