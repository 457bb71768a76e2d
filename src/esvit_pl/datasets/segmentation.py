"""Images with masks: PASCAL VOC 2012 and ADE20K. A mask is uint8 (h w), a class in each pixel, 255 for void."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from esvit_pl.datasets.bad_images import Reading
from esvit_pl.datasets.decode import FORMATS
from esvit_pl.datasets.folder import FolderDataset, all_there, existing
from esvit_pl.datasets.interface import Splits
from esvit_pl.datasets.listing import shown

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
ADE_CLASSES = 150


class MaskedImages(FolderDataset):
    """Image files without labels, each with the file of a mask.

    >>> images = MaskedImages("VOC2012", ["JPEGImages/1.jpg"], ["SegmentationClass/1.png"])
    >>> images.name(0), images.labels
    ('JPEGImages/1.jpg', None)

    Args:
        root: paths count from here.
        names: of the images.
        masks: of the masks, one for each image.
        first: the number that class 0 has in the files; numbers below it are void.
        reading: of the images.
    """

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        masks: Sequence[str],
        *,
        first: int = 0,
        reading: Reading | None = None,
    ) -> None:
        super().__init__(root, names, reading=reading)
        self._masks, self._first = list(masks), first

    def mask(self, index: int) -> Tensor:
        """uint8 (h w): the class of every pixel of an image, 255 where it has none.

        Raises:
            ValueError: the file cannot be read, or holds colours in place of numbers.
        """
        path = Path(self.root) / self._masks[index]
        try:
            with Image.open(path, formats=FORMATS) as file:
                mode, numbers = file.mode, np.array(file)
        except OSError as error:
            raise ValueError(f"cannot read the mask '{shown(path)}': {error}") from error
        if mode not in ("P", "L"):
            raise ValueError(
                f"the mask '{shown(path)}' has Pillow's mode {mode}; it must hold a class number of 8 bits in each "
                "pixel, as a grey or paletted PNG does"
            )
        return torch.from_numpy(numbers - np.uint8(self._first))  # 0 - 1 is 255: void


@dataclass(frozen=True)
class SegmentationSplits(Splits):
    """Images to learn from (the bank) and to be measured on (the query), both `MaskedImages`.

    >>> images = MaskedImages("data", ["1.jpg"], ["1.png"])
    >>> SegmentationSplits(images, images, mask_classes=("sky", "sea")).query.name(0)
    '1.jpg'
    """

    mask_classes: tuple[str, ...] = ()
    """Names of the classes in the masks."""


def voc2012(root: str | Path, **reading: Any) -> SegmentationSplits:
    """PASCAL VOC 2012, segmentation: 1,464 images to train on and 1,449 of val, 21 classes with the background.

    Args:
        root: holds ``VOCdevkit/VOC2012``, as torchvision's ``VOCSegmentation`` unpacks it.
        reading: of `Reading`: value_range, background, max_pixels, on_bad_image, bad_image_budget.

    Raises:
        ValueError: it is not there, or not complete.
    """
    from torchvision.datasets import VOCSegmentation

    home = existing(root)

    def part(split: str) -> MaskedImages:
        try:
            found = VOCSegmentation(str(home), year="2012", image_set=split, download=False)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"VOC 2012 is not in '{shown(home)}': {error}. Unpack VOCtrainval_11-May-2012.tar there, so that "
                f"'{shown(home)}/VOCdevkit/VOC2012' exists, or let torchvision fetch it: "
                "VOCSegmentation(root, year='2012', download=True)"
            ) from None
        names, masks = (
            [Path(path).relative_to(home).as_posix() for path in paths] for paths in (found.images, found.masks)
        )
        return MaskedImages(home, all_there(home, names), all_there(home, masks), reading=Reading(**reading))

    return SegmentationSplits(
        part("train"), part("val"), notes=(f"masks: {len(VOC_CLASSES)} classes",), mask_classes=VOC_CLASSES
    )


def ade20k(root: str | Path, **reading: Any) -> SegmentationSplits:
    """ADE20K as in the scene parsing challenge of 2016: 20,210 images to train on and 2,000 of validation, 150 classes.

    Number 0 in its files is void, 1 to 150 are classes 0 to 149. Their names come from ``objectInfo150.txt`` if it is
    there.

    Args:
        root: ``ADEChallengeData2016``, or the folder that holds it.
        reading: of `Reading`, as in `voc2012`.

    Raises:
        ValueError: it is not there; an image has no mask.
    """
    home = existing(root)
    home = home / "ADEChallengeData2016" if (home / "ADEChallengeData2016").is_dir() else home

    def part(split: str) -> MaskedImages:
        names = sorted(path.name for path in (home / "images" / split).glob("*.jpg"))
        if not names:
            raise ValueError(
                f"'{shown(home)}' holds no images/{split}/*.jpg; unpack ADEChallengeData2016.zip (sceneparsing.csail"
                ".mit.edu), and give its folder ADEChallengeData2016"
            )
        masks = [f"annotations/{split}/{Path(name).stem}.png" for name in names]
        images = [f"images/{split}/{name}" for name in names]
        return MaskedImages(home, images, all_there(home, masks), first=1, reading=Reading(**reading))

    return SegmentationSplits(
        part("training"), part("validation"), notes=(f"masks: {ADE_CLASSES} classes",), mask_classes=_ade_names(home)
    )


def _ade_names(home: Path) -> tuple[str, ...]:
    """The first synonym of each class: the last column of a table with a header."""
    try:
        lines = (home / "objectInfo150.txt").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return tuple(f"class_{number}" for number in range(1, ADE_CLASSES + 1))
    names = tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip())
    if len(names) != ADE_CLASSES:
        raise ValueError(f"'{shown(home / 'objectInfo150.txt')}' names {len(names)} classes, and ADE20K has 150")
    return names
