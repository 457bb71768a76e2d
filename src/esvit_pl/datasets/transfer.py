"""How the data sets of the transfer suites lie on the disk: each function reads one of them, as its authors or
torchvision unpack it, and one reads what Hugging Face's `datasets` has saved. `catalogue` says which there are, and
checks what comes."""

# n images | c classes

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from esvit_pl.datasets.bad_images import Reading
from esvit_pl.datasets.folder import FolderDataset, all_there
from esvit_pl.datasets.interface import UNKNOWN, ArrayDataset, ImageDataset, places_of, sampled
from esvit_pl.datasets.layout import split_named
from esvit_pl.datasets.listing import shown
from esvit_pl.datasets.own import OwnImages, splits_of
from esvit_pl.datasets.segmentation import VOC_CLASSES


class Found(NamedTuple):
    """What was read."""

    parts: Mapping[str, ImageDataset]
    """{"train", perhaps "val", "test"}"""
    classes: Sequence[str]
    notes: tuple[str, ...] = ()


# -- in files, listed by torchvision


def dtd(root: Path) -> Found:
    """Describable Textures, the first of its ten partitions: ``dtd/dtd/{images,labels}``."""
    return _listed("DTD", root, {split: {"split": split, "partition": 1} for split in ("train", "val", "test")})


def pets(root: Path) -> Found:
    """Oxford-IIIT Pets: ``oxford-iiit-pet/{images,annotations}``."""
    return _listed("OxfordIIITPet", root, {"train": {"split": "trainval"}, "test": {"split": "test"}})


def flowers(root: Path) -> Found:
    """Oxford Flowers-102: ``flowers-102/{jpg/,imagelabels.mat,setid.mat}``."""
    return _listed("Flowers102", root, {split: {"split": split} for split in ("train", "val", "test")})


def food(root: Path) -> Found:
    """Food-101: ``food-101/{images,meta}``."""
    return _listed("Food101", root, {split: {"split": split} for split in ("train", "test")})


def aircraft(root: Path) -> Found:
    """FGVC Aircraft, its variants: ``fgvc-aircraft-2013b/data``."""
    return _listed("FGVCAircraft", root, {split: {"split": split} for split in ("train", "val", "test")})


def gtsrb(root: Path) -> Found:
    """German traffic signs: ``gtsrb/GTSRB/{Training,Final_Test/Images}`` and ``gtsrb/GT-final_test.csv``."""
    return _listed("GTSRB", root, {split: {"split": split} for split in ("train", "test")})


def country211(root: Path) -> Found:
    """Country211: ``country211/{train,valid,test}``."""
    return _listed("Country211", root, {"train": {}, "val": {"split": "valid"}, "test": {"split": "test"}})


def rendered_sst2(root: Path) -> Found:
    """Rendered SST2: ``rendered-sst2/{train,valid,test}``."""
    return _listed("RenderedSST2", root, {split: {"split": split} for split in ("train", "val", "test")})


def cars(root: Path) -> Found:
    """Stanford Cars: ``stanford_cars/{cars_train,cars_test,devkit,cars_test_annos_withlabels.mat}``."""
    return _listed("StanfordCars", root, {split: {"split": split} for split in ("train", "test")})


def _listed(name: str, root: Path, splits: Mapping[str, Mapping[str, Any]]) -> Found:
    """The files that a class of torchvision lists, and their labels."""
    from torchvision import datasets

    parts: dict[str, ImageDataset] = {}
    classes: Sequence[str] = ()
    for split, how in splits.items():
        data: Any = getattr(datasets, name)(str(root), download=False, **how)
        pairs = getattr(data, "samples", None) or getattr(data, "_samples", None)  # or two lists
        files = getattr(data, "_image_files", None) or getattr(data, "_images", None)
        paths, labels = zip(*(pairs or zip(files or (), data._labels, strict=True)), strict=True)
        parts[split] = _files(root, [Path(path).relative_to(root).as_posix() for path in paths], labels)
        classes = classes or list(getattr(data, "classes", ())) or [str(n) for n in range(int(max(labels)) + 1)]
    return Found(parts, classes)


def _files(root: Path, names: Sequence[str], labels: Sequence[Any]) -> FolderDataset:
    return FolderDataset(root, all_there(root, names), np.array(labels, dtype=np.int64))


# -- saved by Hugging Face's `datasets`


def hugging_face(folder: Path) -> Found:
    """What ``datasets.load_dataset(...).save_to_disk(folder)`` has written: images and labels in Arrow files.

    Raises:
        ValueError: it has no train or no test, another split has a class that train has not, or the package that reads
            it is not installed.
    """
    if find_spec("datasets") is None:
        raise ValueError("the package datasets, which saved it, is not installed: pip install 'esvit_pl[hub]'")
    from datasets import load_from_disk

    saved: Any = load_from_disk(str(folder))
    names = list(saved) if isinstance(saved, Mapping) else []
    named = {split_named(name): name for name in names}
    if not {"train", "test"} <= set(named):
        raise ValueError(
            "it must have the splits train and test, and may have validation, got "
            f"{', '.join(names) or 'one without a name'}"
        )
    others = [split for split in ("val", "test") if split in named]
    pairs = {split: splits_of({"train": saved[named["train"]], "val": saved[named[split]]}) for split in others}
    read: dict[str, ImageDataset] = {"train": pairs["test"].train}
    read |= {split: pair.query for split, pair in pairs.items()}  # classes are numbered by train
    parts: dict[str, ImageDataset] = {}
    for split, images in read.items():
        own = cast(OwnImages, images)
        parts[split] = Items(own.data, split, np.asarray(own.labels), own.column)
    return Found(parts, pairs["test"].classes or [])


# -- in memory, read by torchvision


def cifar10(root: Path) -> Found:
    """CIFAR-10: ``cifar-10-batches-py``."""
    return _cifar("CIFAR10", root)


def cifar100(root: Path) -> Found:
    """CIFAR-100: ``cifar-100-python``."""
    return _cifar("CIFAR100", root)


def _cifar(name: str, root: Path) -> Found:
    from torchvision import datasets

    read = {split: getattr(datasets, name)(str(root), train=split == "train") for split in ("train", "test")}
    parts = {
        split: _pixels(split, torch.from_numpy(data.data).permute(0, 3, 1, 2), data.targets)
        for split, data in read.items()
    }
    return Found(parts, list(read["train"].classes))


def mnist(root: Path) -> Found:
    """MNIST: ``MNIST/raw``; grey images become RGB."""
    from torchvision.datasets import MNIST

    read = {split: MNIST(str(root), train=split == "train") for split in ("train", "test")}
    parts = {split: _pixels(split, _grey(data.data), data.targets) for split, data in read.items()}
    return Found(parts, [str(digit) for digit in range(10)])


def stl10(root: Path) -> Found:
    """STL-10, all 5,000 labelled training images at once, without the folds: ``stl10_binary``."""
    from torchvision.datasets import STL10

    read = {split: STL10(str(root), split=split) for split in ("train", "test")}
    parts = {
        split: _pixels(split, torch.from_numpy(np.ascontiguousarray(data.data)), np.asarray(data.labels))
        for split, data in read.items()
    }
    return Found(parts, list(read["train"].classes))


def pcam(root: Path) -> Found:
    """PatchCamelyon: ``pcam/camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5``; images stay on the disk."""
    from torchvision.datasets import PCAM

    parts = {}
    for split in ("train", "val", "test"):
        data: Any = PCAM(str(root), split=split)
        with data.h5py.File(data._base_folder / data._FILES[split]["targets"][0]) as file:
            labels = file["y"][:].reshape(-1).astype(np.int64)
        parts[split] = Items(data, split, labels)
    return Found(parts, ["no tumour", "tumour"])


class Items(OwnImages):
    """The images of a data set whose labels are known; their names say the split: "test/000003"."""

    def __init__(self, data: Any, split: str, labels: np.ndarray, column: str | None = None) -> None:
        super().__init__(data, Reading(), labels.tolist(), column)
        self.split = split

    def name(self, index: int) -> str:
        return f"{self.split}/{index:06d}"

    def content_digest(self) -> str:
        return sampled(len(self), lambda index: self.image(index).numpy().tobytes())


def _pixels(split: str, images: Tensor, labels: Any) -> ArrayDataset:
    return ArrayDataset(images, [f"{split}/{index:06d}" for index in range(len(images))], np.asarray(labels))


def _grey(images: Tensor) -> Tensor:
    """(n h w) -> (n 3 h w), without copying."""
    return images[:, None].expand(-1, 3, -1, -1)


# -- read here


def voc2007(root: Path) -> Found:
    """PASCAL VOC 2007: ``VOCdevkit/VOC2007``, of trainval and of test. Labels come from the objects of each image: a
    class of which all objects are "difficult" is unknown, as in the challenge's own lists."""
    home = root / "VOCdevkit" / "VOC2007"
    classes = VOC_CLASSES[1:]
    parts = {}
    for split in ("train", "val", "test"):
        listed = (home / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
        names = all_there(home, [f"JPEGImages/{name}.jpg" for name in listed])
        rows = [_memberships(home / "Annotations" / f"{name}.xml", classes) for name in listed]
        parts[split] = FolderDataset(home, names, np.array(rows, dtype=np.int8).reshape(-1, len(classes)))
    return Found(parts, classes)


def _memberships(file: Path, classes: Sequence[str]) -> list[int]:
    row = dict.fromkeys(classes, 0)
    for thing in ElementTree.parse(file).getroot().iter("object"):
        name, difficult = thing.findtext("name", "").strip(), thing.findtext("difficult", "0").strip() == "1"
        if name not in row:
            raise ValueError(f"'{shown(file)}' names the class {name}, which VOC does not have")
        if row[name] != 1:
            row[name] = UNKNOWN if difficult else 1
    return list(row.values())


FER_CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def fer2013(root: Path) -> Found:
    """FER2013: ``fer2013/fer2013.csv`` or ``icml_face_data.csv``; val is its PublicTest, test its PrivateTest."""
    splits = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
    home = root / "fer2013"
    files = [home / name for name in ("fer2013.csv", "icml_face_data.csv") if (home / name).is_file()]
    if not files:
        raise ValueError(f"'{shown(home)}' holds neither fer2013.csv nor icml_face_data.csv")
    images: dict[str, list[np.ndarray]] = {split: [] for split in splits.values()}
    labels: dict[str, list[int]] = {split: [] for split in splits.values()}
    with files[0].open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, skipinitialspace=True):  # one of the two has spaces in its header
            split = splits[row["Usage"].strip()]
            images[split].append(np.array(row["pixels"].split(), dtype=np.uint8).reshape(48, 48))
            labels[split].append(int(row["emotion"]))
    parts = {split: _pixels(split, _grey(torch.from_numpy(np.stack(images[split]))), labels[split]) for split in images}
    return Found(parts, FER_CLASSES)


def hateful_memes(root: Path) -> Found:
    """Hateful Memes, images alone: ``hateful_memes/{train.jsonl,dev.jsonl,img}``. Its dev split (also called
    ``dev_seen.jsonl``) is the test, since the labels of its test are not public."""
    home = root / "hateful_memes"
    dev = next((name for name in ("dev.jsonl", "dev_seen.jsonl") if (home / name).is_file()), "dev.jsonl")
    parts = {}
    for split, name in (("train", "train.jsonl"), ("test", dev)):
        lines = (home / name).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        parts[split] = _files(home, [row["img"] for row in rows], [int(row["label"]) for row in rows])
    return Found(parts, ("harmless", "hateful"))


def sun397(root: Path) -> Found:
    """SUN397, the first of its ten partitions: ``SUN397/a/abbey/*.jpg``, with ``ClassName.txt``, ``Training_01.txt``
    and ``Testing_01.txt`` of Partitions.zip there or in ``SUN397/Partitions``."""
    home = root / "SUN397"
    place = home / "Partitions" if (home / "Partitions").is_dir() else home
    known = next((folder / "ClassName.txt" for folder in (home, place) if (folder / "ClassName.txt").is_file()), home)
    classes = [line.strip() for line in known.read_text(encoding="utf-8").splitlines() if line.strip()]
    number = {name: index for index, name in enumerate(classes)}
    parts = {}
    for split, name in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        paths = (place / name).read_text(encoding="utf-8").split()
        labels = [number[path.rpartition("/")[0]] for path in paths]
        parts[split] = _files(home, [path.lstrip("/") for path in paths], labels)
    return Found(parts, [name[3:] for name in classes])


def ucf101(root: Path) -> Found:
    """UCF101, the middle frame of each video, fold 1: ``ucf101/frames/CLASS/VIDEO.jpg`` and
    ``ucf101/ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt``."""
    home = root / "ucf101"
    lists = home / "ucfTrainTestlist"
    classes = (lists / "classInd.txt").read_text(encoding="utf-8").split()[1::2]
    parts = {}
    for split in ("train", "test"):
        lines = (lists / f"{split}list01.txt").read_text(encoding="utf-8").splitlines()
        videos = [line.split()[0] for line in lines if line.strip()]
        names = [f"frames/{video.removesuffix('.avi')}.jpg" for video in videos]
        parts[split] = _files(home, names, [classes.index(video.partition("/")[0]) for video in videos])
    return Found(parts, classes)


VEHICLES = ("Car", "Van", "Truck")
DISTANCES = {"nearest vehicle up to 8 m": 8.0, "8 to 20 m": 20.0, "more than 20 m": 999.0, "no vehicle": float("inf")}


def kitti(root: Path) -> Found:
    """KITTI, how far the nearest vehicle is: ``Kitti/raw/{training/{image_2,label_2},mapping}``.

    Classes and thresholds are those of VTAB (arXiv 1910.04867, its "closest vehicle distance"). Videos are drawn for
    test and val as TensorFlow Datasets draws them, whose numbers of images ELEVATER has, too.
    """
    home = root / "Kitti" / "raw"
    mapping = next((home / name for name in ("mapping", "devkit_object/mapping") if (home / name).is_dir()), home)
    rows = (mapping / "train_mapping.txt").read_text(encoding="utf-8").splitlines()
    order = (mapping / "train_rand.txt").read_text(encoding="utf-8").split(",")
    videos = [rows[int(place) - 1].split()[1] for place in order]  # of image 000000, 000001, ...
    draw = np.random.RandomState(123)
    there = sorted(set(videos))
    some = max(1, len(there) // 10)
    test = set(draw.choice(there, some, replace=False))
    val = set(draw.choice([video for video in there if video not in test], some, replace=False))
    images: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, video in enumerate(videos):
        images["test" if video in test else "val" if video in val else "train"].append(index)
    parts = {}
    for split, numbers in images.items():
        labels = [_nearest_vehicle(home / "training" / "label_2" / f"{number:06d}.txt") for number in numbers]
        parts[split] = _files(home, [f"training/image_2/{number:06d}.png" for number in numbers], labels)
    return Found(parts, list(DISTANCES))


def _nearest_vehicle(file: Path) -> int:
    """The class of `DISTANCES`; word 14 of an object's line is how far ahead of the camera it is, in metres."""
    things = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    nearest = min((float(thing[13]) for thing in things if thing and thing[0] in VEHICLES), default=float("inf"))
    return next(number for number, most in enumerate(DISTANCES.values()) if nearest <= most)


# -- without a split of their own


def caltech101(root: Path) -> Found:
    """Caltech-101 with its background class: ``caltech101/101_ObjectCategories``; 30 images a class to train on."""
    return _parted(root / "caltech101" / "101_ObjectCategories", {"train": 30})


def eurosat(root: Path) -> Found:
    """EuroSAT, RGB: ``eurosat/2750``; of each class 500 images in each of the three splits."""
    return _parted(root / "eurosat" / "2750", {"train": 500, "val": 500}, test=500)


def resisc45(root: Path) -> Found:
    """RESISC45: ``resisc45/NWPU-RESISC45``; of each class 70 images to train on, 70 of val, the others are the test."""
    return _parted(root / "resisc45" / "NWPU-RESISC45", {"train": 70, "val": 70})


def _parted(home: Path, sizes: Mapping[str, int], test: int | None = None) -> Found:
    """Folders of classes, parted by a rule: the images of each class in the order of a hash of their paths below `home`
    (`places_of`), the first ones to the first split. It is the same on every machine, and no list need be kept.

    Args:
        sizes: {split: images of each class}.
        test: images of each class after those; None: all that are left.
    """
    classes = sorted(entry.name for entry in home.iterdir() if entry.is_dir())
    names: dict[str, list[str]] = {split: [] for split in (*sizes, "test")}
    labels: dict[str, list[int]] = {split: [] for split in names}
    for number, name in enumerate(classes):
        files = sorted(f"{name}/{path.name}" for path in (home / name).iterdir() if path.suffix.lower() in IMAGES)
        order = iter([files[place] for place in np.argsort(places_of(files), kind="stable")])
        for split, size in (*sizes.items(), ("test", test)):
            some = list(islice(order, size))
            names[split] += some
            labels[split] += [number] * len(some)
    each = ", ".join(f"{split} {'the rest' if n is None else n}" for split, n in (*sizes.items(), ("test", test)))
    note = f"split: made here by a hash of each image's path, of each class: {each}"
    return Found({split: _files(home, names[split], labels[split]) for split in names}, classes, (note,))


IMAGES = (".jpg", ".jpeg", ".png", ".tif")
