"""Images in a folder, with or without labels, and ImageNet's usual layout.

What a folder means:
  root/train/..., root/val/...    the two splits, if the only folders in root are `train` and any of `val`, `valid`,
                                  `validation` and `test`. The first of `val`, `valid`, `validation` is used; `test` is
                                  never read
  anything else                   all images below root are for training; a hash of the file names splits them into
                                  bank and query
and within a split, with `labels="auto"`:
  <class>/<file> only             the folders are classes, if there are two or more
  anything else                   no labels: images directly in the split, deeper than one folder, or in a single folder
`labels="folders"` takes the first folder below the split as the class, even for images deeper down; `labels="none"`
ignores folders. Hidden files and folders are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from esvit_pl.datasets.decode import decode, open_picture
from esvit_pl.datasets.interface import ImageDataset, Picture, Splits
from esvit_pl.datasets.pixels import PixelRules

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VAL_FOLDERS = ("val", "valid", "validation")


class FolderDataset(ImageDataset):
    """The image files `names` (paths below `root`), with a class number for each in `labels`, or None without labels.

    Files are opened when they are asked for, and become RGB by `rules`.

    >>> images = FolderDataset("photos", ["cat/1.jpg", "dog/1.jpg"], labels=[0, 1])
    >>> len(images), images.name(1), images.labels
    (2, 'dog/1.jpg', [0, 1])
    """

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        *,
        rules: PixelRules | None = None,
    ) -> None:
        self.root, self.rules = str(root), rules or PixelRules()
        # One block of bytes instead of a million Python strings: forked workers share it without copying.
        self._names = np.array([os.fsencode(name) for name in names])
        self._labels = None if labels is None else np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return decode(self._path(index), self.rules), self._label(index)

    def open(self, index: int) -> Picture:
        return open_picture(self._path(index), self._label(index), self.rules)

    @property
    def labels(self) -> list[int] | None:
        return None if self._labels is None else [int(label) for label in self._labels]

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index])

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))

    def _label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[index])


def folder(root: str | Path, *, labels: str = "auto", val_fraction: float = 0.1, **rules: Any) -> Splits:
    """All images below `root`, in the order of their names; the top of this file says what a folder means.

    Args:
        labels: "auto", "folders" or "none".
        val_fraction: the share of images that become the query where there is no `val` folder.
        rules: of `PixelRules`: value_range, background, max_pixels.

    Raises:
        ValueError: `root` does not exist, is not a folder or holds no image; `labels="folders"` and there are images
            outside class folders; `val` has classes that `train` does not have, or only one of the two has labels.
    """
    if labels not in ("auto", "folders", "none"):
        raise ValueError(f"labels must be 'auto', 'folders' or 'none', got {labels!r}")
    pixels = PixelRules(**rules)
    root = _existing(root)
    train_root, val_root = _split_roots(root)
    train = _find(train_root)
    val = _find(val_root) if val_root is not None else None
    if labels == "none" or (labels == "auto" and not _are_class_folders(train)):
        unlabelled = None if val_root is None else FolderDataset(val_root, val or [], rules=pixels)
        return Splits(FolderDataset(train_root, train, rules=pixels), unlabelled, val_fraction=val_fraction)
    classes = sorted(set(_class_names(train_root, train)))
    labelled = None if val_root is None else _labelled(val_root, val or [], classes, pixels)
    return Splits(_labelled(train_root, train, classes, pixels), labelled, classes, val_fraction)


def imagenet(root: str | Path) -> Splits:
    """ImageNet-1k in its usual layout: `root/train/<wnid>/*.JPEG` and `root/val/<wnid>/*.JPEG`.

    Raises:
        ValueError: one of the two folders is missing, or the validation images are not sorted into class folders.
    """
    root = _existing(root)
    missing = [name for name in ("train", "val") if not (root / name).is_dir()]
    if missing:
        raise ValueError(f"'{root}' has no folder '{missing[0]}': ImageNet is read from train/<wnid>/ and val/<wnid>/")
    return folder(root, labels="folders")


def _existing(root: str | Path) -> Path:
    root = Path(root).expanduser()
    if not root.exists():
        raise ValueError(f"the folder '{root}' does not exist")
    if not root.is_dir():
        raise ValueError(f"'{root}' is a file; give a folder of images")
    return root


def _split_roots(root: Path) -> tuple[Path, Path | None]:
    """The folders of the training and validation images; see the top of this file."""
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")}
    if "train" not in folders or folders - {"train", "test", *VAL_FOLDERS}:
        return root, None
    val = next((root / name for name in VAL_FOLDERS if name in folders), None)
    return root / "train", val


def _find(root: Path) -> list[str]:
    """The image files below `root`, as sorted paths with forward slashes."""
    names = sorted(_walk(root, "", ()))
    if not names:
        endings = " ".join(ending[1:] for ending in EXTENSIONS)
        raise ValueError(f"no image below '{root}': looked for {endings}, in upper or lower case")
    return names


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a symbolic link to one of its own parents
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, real))
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name


def _are_class_folders(names: list[str]) -> bool:
    return all(name.count("/") == 1 for name in names) and len({name.split("/")[0] for name in names}) > 1


def _class_names(root: Path, names: list[str]) -> list[str]:
    """The class of every image: the first folder below `root`."""
    flat = [name for name in names if "/" not in name]
    if flat:
        raise ValueError(
            f"{len(flat):,} images lie directly in '{root}' (the first is '{flat[0]}') and not in class folders "
            f"('{root}/<class>/<image>'): sort them into folders, or pass labels='none'"
        )
    return [name.split("/")[0] for name in names]


def _labelled(root: Path, names: list[str], classes: list[str], rules: PixelRules) -> FolderDataset:
    number = {name: index for index, name in enumerate(classes)}
    of_images = _class_names(root, names)
    unknown = sorted(set(of_images) - number.keys())
    if unknown:
        raise ValueError(
            f"'{root}' has {len(unknown)} class folders that the training images do not have: "
            f"{', '.join(unknown[:5])}; "
            f"there are {len(classes)}: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
        )
    return FolderDataset(root, names, [number[name] for name in of_images], rules=rules)
