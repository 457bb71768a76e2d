"""The data sets of the transfer suites: how many images and classes they have, how they count, how to get them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esvit_pl.datasets import transfer
from esvit_pl.datasets.folder import existing
from esvit_pl.datasets.interface import ImageDataset, Splits
from esvit_pl.datasets.listing import shown


class Entry(NamedTuple):
    """What is known of a data set before it is read."""

    title: str
    read: Callable[[Path], transfer.Found]
    folder: str
    """Below the root; the data set is missing where this is."""
    classes: int
    images: Mapping[str, int]
    """{split: how many}"""
    how: str
    """Where its files come from."""
    metric: str = "top1"
    """One of those of `metrics.measure`."""
    squash: bool = False
    """Whether the whole image is seen, both sides resized to the crop's, since what it shows may lie at its border."""


HUB = "hugging_face"
"""Below the root: ``datasets.load_dataset(REPOSITORY).save_to_disk("ROOT/hugging_face/dtd")`` is read in place of DTD's
own files."""


def _torchvision(name: str, more: str = "") -> str:
    return f"torchvision.datasets.{name}('ROOT'{more}, download=True)"


CATALOGUE: dict[str, Entry] = {
    "cifar10": Entry("CIFAR-10", transfer.cifar10, "cifar-10-batches-py", 10, {"train": 50_000, "test": 10_000},
                     _torchvision("CIFAR10")),
    "cifar100": Entry("CIFAR-100", transfer.cifar100, "cifar-100-python", 100, {"train": 50_000, "test": 10_000},
                      _torchvision("CIFAR100")),
    "dtd": Entry("DTD", transfer.dtd, "dtd", 47, {"train": 1_880, "val": 1_880, "test": 1_880}, _torchvision("DTD")),
    "pets": Entry("Pets", transfer.pets, "oxford-iiit-pet", 37, {"train": 3_680, "test": 3_669},
                  _torchvision("OxfordIIITPet"), "per_class"),
    "flowers102": Entry("Flowers-102", transfer.flowers, "flowers-102", 102,
                        {"train": 1_020, "val": 1_020, "test": 6_149},
                        f"{_torchvision('Flowers102')}; reading it needs scipy", "per_class"),
    "food101": Entry("Food-101", transfer.food, "food-101", 101, {"train": 75_750, "test": 25_250},
                     _torchvision("Food101")),
    "aircraft": Entry("Aircraft", transfer.aircraft, "fgvc-aircraft-2013b", 100,
                      {"train": 3_334, "val": 3_333, "test": 3_333}, _torchvision("FGVCAircraft"), "per_class"),
    "cars": Entry("Cars", transfer.cars, "stanford_cars", 196, {"train": 8_144, "test": 8_041},
                  "by hand, for torchvision's link is broken: cars_train, cars_test, devkit and "
                  "cars_test_annos_withlabels.mat go into ROOT/stanford_cars; reading it needs scipy"),
    "caltech101": Entry("Caltech-101", transfer.caltech101, "caltech101", 102, {"train": 3_060, "test": 6_084},
                        _torchvision("Caltech101"), "per_class"),
    "mnist": Entry("MNIST", transfer.mnist, "MNIST", 10, {"train": 60_000, "test": 10_000}, _torchvision("MNIST")),
    "fer2013": Entry("FER2013", transfer.fer2013, "fer2013", 7, {"train": 28_709, "val": 3_589, "test": 3_589},
                     "by hand from Kaggle (challenges-in-representation-learning-facial-expression-recognition-"
                     "challenge): fer2013.csv or icml_face_data.csv goes into ROOT/fer2013"),
    "stl10": Entry("STL-10", transfer.stl10, "stl10_binary", 10, {"train": 5_000, "test": 8_000},
                   _torchvision("STL10")),
    "gtsrb": Entry("GTSRB", transfer.gtsrb, "gtsrb", 43, {"train": 26_640, "test": 12_630},
                   f"{_torchvision('GTSRB', ', split=SPLIT')}, for train and test"),
    "pcam": Entry("PatchCamelyon", transfer.pcam, "pcam", 2, {"train": 262_144, "val": 32_768, "test": 32_768},
                  f"{_torchvision('PCAM', ', split=SPLIT')}, for train, val and test; needs gdown to fetch it and h5py "
                  "to read it"),
    "voc2007": Entry("VOC2007", transfer.voc2007, "VOCdevkit/VOC2007", 20,
                     {"train": 2_501, "val": 2_510, "test": 4_952},
                     _torchvision("VOCDetection", ", year='2007', image_set=SET") + ", for trainval and test", "map11"),
    "sun397": Entry("SUN397", transfer.sun397, "SUN397", 397, {"train": 19_850, "test": 19_850},
                    f"{_torchvision('SUN397')}; Training_01.txt and Testing_01.txt of its authors' Partitions.zip go "
                    "into ROOT/SUN397"),
    "ucf101": Entry("UCF101", transfer.ucf101, "ucf101", 101, {"train": 9_537, "test": 3_783},
                    "by hand from crcv.ucf.edu: the middle frame of CLASS/VIDEO.avi becomes "
                    "ROOT/ucf101/frames/CLASS/VIDEO.jpg, and the lists go into ROOT/ucf101/ucfTrainTestlist"),
    "hateful_memes": Entry("Hateful Memes", transfer.hateful_memes, "hateful_memes", 2, {"train": 8_500, "test": 500},
                           "by hand, its licence must be signed: train.jsonl, dev.jsonl and img go into "
                           "ROOT/hateful_memes", "roc_auc"),
    "eurosat": Entry("EuroSAT", transfer.eurosat, "eurosat", 10, {"train": 5_000, "val": 5_000, "test": 5_000},
                     _torchvision("EuroSAT")),
    "resisc45": Entry("RESISC45", transfer.resisc45, "resisc45", 45, {"train": 3_150, "val": 3_150, "test": 25_200},
                      "by hand: the folders of NWPU-RESISC45.rar go into ROOT/resisc45/NWPU-RESISC45"),
    "country211": Entry("Country211", transfer.country211, "country211", 211,
                        {"train": 31_650, "val": 10_550, "test": 21_100}, _torchvision("Country211")),
    "rendered_sst2": Entry("Rendered SST2", transfer.rendered_sst2, "rendered-sst2", 2,
                           {"train": 6_920, "val": 872, "test": 1_821}, _torchvision("RenderedSST2")),
    "kitti": Entry("KITTI distance", transfer.kitti, "Kitti/raw", 4, {"train": 6_347, "val": 423, "test": 711},
                   f"{_torchvision('Kitti')}; mapping of its authors' devkit_object.zip goes into ROOT/Kitti/raw",
                   squash=True),
}  # fmt: skip


class Suite(NamedTuple):
    """Data sets that are evaluated together."""

    datasets: tuple[str, ...]
    note: str = ""
    """What is not certain about it, for the user."""


SUITES: dict[str, Suite] = {
    "quick": Suite(("cifar10", "dtd", "pets", "flowers102")),
    "clip18": Suite(
        (
            "food101", "cifar10", "cifar100", "sun397", "cars", "aircraft", "voc2007", "dtd", "pets", "caltech101",
            "flowers102", "mnist", "fer2013", "stl10", "gtsrb", "pcam", "ucf101", "hateful_memes",
        ),
        "clip18 are the 18 data sets of the EsViT paper as we understand it; its list is in an appendix that could not "
        "be checked, and its sizes differ a little from CLIP's",
    ),
    "elevater20": Suite(
        (
            "caltech101", "cifar10", "cifar100", "country211", "dtd", "eurosat", "fer2013", "aircraft", "food101",
            "gtsrb", "hateful_memes", "mnist", "flowers102", "pets", "pcam", "rendered_sst2", "resisc45", "cars",
            "voc2007", "kitti",
        ),
        "elevater20 has ELEVATER's data sets, not its protocol, which takes the best epoch on the test; splits of "
        "Caltech-101, EuroSAT and RESISC45 are made here",
    ),
}  # fmt: skip


def missing(name: str, root: str | Path) -> str | None:
    """How to get a data set that is not in `root`; None if it is there.

    >>> missing("dtd", "nowhere")
    "torchvision.datasets.DTD('nowhere', download=True)"

    Raises:
        ValueError: there is no such data set.
    """
    place, _ = _place(name, Path(root).expanduser())
    return None if place.is_dir() else _entry(name).how.replace("ROOT", str(root))


def load(name: str, root: str | Path, *, check_counts: bool = True) -> Splits:
    """A data set of `CATALOGUE` with its train, val (if it has one) and test.

    Args:
        name: such as "dtd".
        root: the folder of all data sets, each in its own, as torchvision unpacks it.
        check_counts: refuse other numbers of images and classes than are known.

    Raises:
        ValueError: it is not there, cannot be read, or is not complete; the message says why, and how to get it.
    """
    entry, home = _entry(name), existing(root)
    how = missing(name, home)
    if how is not None:
        raise ValueError(f"{entry.title} is not in '{shown(home)}': there is no folder {entry.folder}. Get it: {how}")
    place, saved = _place(name, home)
    try:
        found = transfer.hugging_face(place) if saved else entry.read(home)
    except (ImportError, RuntimeError, OSError, ValueError, LookupError, SyntaxError) as error:
        reason = str(error) if isinstance(error, (ValueError, RuntimeError)) else f"{type(error).__name__}: {error}"
        remedy = (
            "Save it again, or take this folder away" if saved else f"Get it: {entry.how.replace('ROOT', str(home))}"
        )
        raise ValueError(f"{entry.title} in '{shown(place)}' cannot be read: {reason}. {remedy}") from error
    if check_counts:
        _check(entry, found)
    parts = dict(found.parts)
    return Splits(
        parts["train"],
        parts.get("val"),
        list(found.classes),
        notes=found.notes,
        test=parts["test"],
        metric=entry.metric,
    )


def _place(name: str, home: Path) -> tuple[Path, bool]:
    """Where a data set lies, or would lie, and whether `datasets` has saved it there."""
    saved = home / HUB / name
    return (saved, True) if saved.is_dir() else (home / _entry(name).folder, False)


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        raise ValueError(f"there is no data set {name}; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def _check(entry: Entry, found: transfer.Found) -> None:
    """Refuse other numbers of images and classes, and classes that a split lacks."""
    if len(found.classes) != entry.classes:
        raise ValueError(f"{entry.title} must have {entry.classes} classes, got {len(found.classes)}")
    for split, wanted in entry.images.items():
        images = found.parts[split]
        if len(images) != wanted:
            raise ValueError(
                f"{entry.title} must have {wanted:,} images of {split}, got {len(images):,}: not complete?"
            )
        lacking = entry.classes - _classes_in(images)
        if lacking:
            raise ValueError(f"{entry.title} has {lacking} of {entry.classes} classes without an image of {split}")


def _classes_in(images: ImageDataset) -> int:
    if images.memberships is not None:
        return int((np.asarray(images.memberships) == 1).any(0).sum())
    return len(Counter(images.labels or ()))
