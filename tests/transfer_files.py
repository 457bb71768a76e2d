"""Data sets of the transfer suites in miniature, in the files and folders in which the real ones are unpacked.

Two or three classes, a few images in each split. An image of class 0 is reddish, of class 1 greenish.
"""

from __future__ import annotations

import csv
import json
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def colour(label: int, number: int = 0, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """(h w 3): noise with one channel brighter."""
    pixels = np.random.default_rng([label, number]).integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[..., label % 3] += 120
    return pixels


def draw(path: Path, label: int, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colour(label, number)).save(path)


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def dtd(root: Path, each: int = 1) -> None:
    home = root / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        names = [f"{name}/{name}_{split}{i}.jpg" for name in ("banded", "dotted") for i in range(each)]
        write(home / "labels" / f"{split}1.txt", names)
        for number, name in enumerate(names):
            draw(home / "images" / name, int(name.startswith("dotted")), number)


def pets(root: Path, each: int = 1) -> None:
    home = root / "oxford-iiit-pet"
    for split, first in (("trainval", 1), ("test", 101)):
        lines = []
        for label, name in enumerate(("Abyssinian", "basset_hound")):
            for number in range(first, first + each):
                lines.append(f"{name}_{number} {label + 1} {1 + label} 1")
                draw(home / "images" / f"{name}_{number}.jpg", label, number)
        write(home / "annotations" / f"{split}.txt", lines)


def flowers(root: Path, each: int = 1) -> None:
    """Images are numbered through, and the lists of the splits are mixed: 1, 4, 7, ... belong to the test."""
    from scipy.io import savemat

    home = root / "flowers-102"
    ids = {"tstid": [], "trnid": [], "valid": []}
    labels = []
    for number in range(1, 6 * each + 1):
        list(ids.values())[(number - 1) % 3].append(number)
        labels.append(1 + (number - 1) // 3 % 2)
        draw(home / "jpg" / f"image_{number:05d}.jpg", labels[-1] - 1, number)
    savemat(home / "imagelabels.mat", {"labels": labels})
    savemat(home / "setid.mat", ids)


def food(root: Path) -> None:
    home = root / "food-101"
    for split, number in (("train", 1), ("test", 2)):
        (home / "meta").mkdir(parents=True, exist_ok=True)
        lists = {name: [f"{name}/{number}"] for name in ("pizza", "apple_pie")}
        (home / "meta" / f"{split}.json").write_text(json.dumps(lists))
        for name in lists:
            draw(home / "images" / name / f"{number}.jpg", int(name == "pizza"))


def aircraft(root: Path) -> None:
    home = root / "fgvc-aircraft-2013b" / "data"
    write(home / "variants.txt", ["707-320", "A300 B4"])
    for split, number in (("train", 11), ("val", 22), ("test", 33)):
        lines = [f"{number}0 A300 B4", f"{number}1 707-320"]
        write(home / f"images_variant_{split}.txt", lines)
        for line in lines:
            draw(home / "images" / f"{line.partition(' ')[0]}.jpg", int("A300" in line))


def gtsrb(root: Path) -> None:
    home = root / "gtsrb"
    for label in (0, 1):
        draw(home / "GTSRB" / "Training" / f"{label:05d}" / "00000_00000.ppm", label)
        draw(home / "GTSRB" / "Final_Test" / "Images" / f"0000{label}.ppm", 1 - label)
    write(home / "GT-final_test.csv", ["Filename;Width;ClassId", "00000.ppm;16;1", "00001.ppm;16;0"])


def country211(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for label, name in enumerate(("AD", "ZW")):
            draw(root / "country211" / split / name / f"{split}.jpg", label)


def rendered_sst2(root: Path) -> None:
    for split in ("train", "valid", "test"):
        for label, name in enumerate(("negative", "positive")):
            draw(root / "rendered-sst2" / split / name / f"{split}.png", label)


def cars(root: Path) -> None:
    from scipy.io import savemat

    home = root / "stanford_cars"
    kinds = [("fname", object), ("class", np.uint8)]
    places = {"train": home / "devkit" / "cars_train_annos.mat", "test": home / "cars_test_annos_withlabels.mat"}
    (home / "devkit").mkdir(parents=True)
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura"], dtype=object)})
    for split, file in places.items():
        rows = np.array([(f"0000{number}.jpg", 3 - number) for number in (1, 2)], dtype=kinds)
        savemat(file, {"annotations": rows})
        for number in (1, 2):
            draw(home / f"cars_{split}" / f"0000{number}.jpg", 2 - number)


def kitti(root: Path) -> None:
    """Ten images of ten videos, which train_rand.txt takes in another order, and what is in them."""
    home = root / "Kitti" / "raw"
    videos = [f"2011_09_26 2011_09_26_drive_{number:04d}_sync 0000000{number:03d}" for number in range(10)]
    write(home / "mapping" / "train_mapping.txt", videos)
    write(home / "mapping" / "train_rand.txt", [",".join(str(10 - number) for number in range(10))])
    for number in range(10):
        near, far = KITTI_THINGS[number % len(KITTI_THINGS)]
        things = [f"{kind} 0.00 0 -1.58 1 2 3 4 1.6 1.7 3.7 1.0 1.75 {z} -1.59" for kind, z in (near, far) if kind]
        write(home / "training" / "label_2" / f"{number:06d}.txt", things)
        draw(home / "training" / "image_2" / f"{number:06d}.png", 0, number)


KITTI_THINGS = (
    (("Car", 8.0), ("Truck", 30.0)),
    (("Pedestrian", 3.0), ("Van", 8.01)),
    (("Truck", 20.5), ("DontCare", -1000.0)),
    (("Tram", 5.0), ("", 0.0)),
)


def cifar10(root: Path, each: int = 1) -> None:
    _cifar(root / "cifar-10-batches-py", "labels", "batches.meta", {"label_names": ["airplane", "automobile"]}, each)


def cifar100(root: Path) -> None:
    _cifar(root / "cifar-100-python", "fine_labels", "meta", {"fine_label_names": ["apple", "baby"]})


def _cifar(home: Path, key: str, meta: str, names: dict[str, list[str]], each: int = 1) -> None:
    home.mkdir(parents=True)
    (home / meta).write_bytes(pickle.dumps(names))
    batches = [f"data_batch_{number}" for number in range(1, 6)] if "batches" in home.name else ["train"]
    for batch, file in enumerate([*batches, "test_batch" if len(batches) > 1 else "test"]):
        labels = [0, 1] * each
        images = [colour(label, 10 * batch + i, (32, 32)).transpose(2, 0, 1) for i, label in enumerate(labels)]
        (home / file).write_bytes(pickle.dumps({"data": np.stack(images).reshape(-1, 3072), key: labels}))


def mnist(root: Path) -> None:
    home = root / "MNIST" / "raw"
    home.mkdir(parents=True)
    for split, labels in (("train", [3, 0]), ("t10k", [1, 1, 9])):
        pixels = np.arange(len(labels) * 28 * 28, dtype=np.uint8)
        head = struct.pack(">4i", 0x803, len(labels), 28, 28)
        (home / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (home / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + bytes(labels))


def stl10(root: Path) -> None:
    """Pixels lie column by column."""
    home = root / "stl10_binary"
    for split, labels in (("train", [2, 1]), ("test", [1, 1, 2])):
        home.mkdir(exist_ok=True)
        pixels = np.stack([colour(label - 1, number, (96, 96)) for number, label in enumerate(labels)])
        (home / f"{split}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        (home / f"{split}_y.bin").write_bytes(bytes(labels))
    write(home / "class_names.txt", ["airplane", "bird"])


def pcam(root: Path) -> None:
    import h5py

    (root / "pcam").mkdir()
    for split, labels in (("train", [0, 1]), ("valid", [1]), ("test", [1, 0])):
        pixels = np.stack([colour(label, 0, (96, 96)) for label in labels])
        start = root / "pcam" / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{start}_x.h5", "w") as file:
            file["x"] = pixels
        with h5py.File(f"{start}_y.h5", "w") as file:
            file["y"] = np.array(labels, dtype=np.uint8).reshape(-1, 1, 1, 1)


def voc2007(root: Path) -> None:
    """A dog and a cat; a cat and a difficult dog; two difficult people; nothing; a difficult person and another."""
    home = root / "VOCdevkit" / "VOC2007"
    images = {
        "000001": ("train", [("dog", 0), ("cat", 0)]),
        "000002": ("train", [("cat", 0), ("dog", 1)]),
        "000003": ("val", [("person", 1), ("person", 1)]),
        "000004": ("val", []),
        "000005": ("test", [("person", 1), ("person", 0)]),
    }
    for split in ("train", "val", "test"):
        write(
            home / "ImageSets" / "Main" / f"{split}.txt", [name for name, (part, _) in images.items() if part == split]
        )
    for name, (_, things) in images.items():
        draw(home / "JPEGImages" / f"{name}.jpg", 0)
        objects = [f"<object><name>{kind}</name><difficult>{hard}</difficult></object>" for kind, hard in things]
        write(home / "Annotations" / f"{name}.xml", ["<annotation>", *objects, "</annotation>"])


def fer2013(root: Path, name: str = "fer2013.csv") -> None:
    (root / "fer2013").mkdir()
    rows = [(3, "Training", 7), (6, "Training", 8), (0, "PublicTest", 9), (3, "PrivateTest", 10)]
    with (root / "fer2013" / name).open("w", newline="") as file:
        pixels = {row: " ".join([str(row[2])] * 48 * 48) for row in rows}
        if name == "fer2013.csv":
            csv.writer(file).writerows([("emotion", "pixels", "Usage"), *((r[0], pixels[r], r[1]) for r in rows)])
        else:
            csv.writer(file).writerows([("emotion", " Usage", " pixels"), *((r[0], r[1], pixels[r]) for r in rows)])


def hateful_memes(root: Path, dev: str = "dev.jsonl") -> None:
    home = root / "hateful_memes"
    for name, ids in (("train.jsonl", (42953, 8291)), (dev, (8192,))):
        rows = [{"id": i, "img": f"img/{i:05d}.png", "label": i % 2, "text": "its their character"} for i in ids]
        write(home / name, map(json.dumps, rows))
        for row in rows:
            draw(home / row["img"], row["label"])


def sun397(root: Path, lists: str = "Partitions") -> None:
    home = root / "SUN397"
    write(home / "ClassName.txt", ["/a/abbey", "/a/apartment_building/outdoor"])
    for split, number in (("Training", 1), ("Testing", 2)):
        paths = [f"/a/apartment_building/outdoor/sun_{number}.jpg", f"/a/abbey/sun_{number}.jpg"]
        write(home / lists / f"{split}_01.txt", paths)
        for path in paths:
            draw(home / path[1:], int("outdoor" in path))
    draw(home / "a/abbey/sun_3.jpg", 0)  # in neither list


def ucf101(root: Path) -> None:
    home = root / "ucf101"
    write(home / "ucfTrainTestlist" / "classInd.txt", ["1 ApplyEyeMakeup", "2 Archery"])
    videos = {"train": ["Archery/v_Archery_g08_c01", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01"], "test": []}
    videos["test"] = [video.replace("g08", "g01") for video in videos["train"]]
    for split, names in videos.items():
        numbers = [f" {2 - number}" if split == "train" else "" for number in range(2)]
        write(
            home / "ucfTrainTestlist" / f"{split}list01.txt",
            [f"{name}.avi{more}" for name, more in zip(names, numbers, strict=True)],
        )
        for number, name in enumerate(names):
            draw(home / "frames" / f"{name}.jpg", 1 - number)


def folders(home: Path, classes: Iterable[str], each: int) -> None:
    for label, name in enumerate(classes):
        first = home / name / f"{name}_0000.jpg"
        draw(first, label)
        for number in range(1, each):
            first.with_name(f"{name}_{number:04d}.jpg").write_bytes(first.read_bytes())


def caltech101(root: Path) -> None:
    folders(root / "caltech101" / "101_ObjectCategories", ("BACKGROUND_Google", "accordion"), 33)


def eurosat(root: Path) -> None:
    folders(root / "eurosat" / "2750", ("AnnualCrop", "Forest"), 1502)


def resisc45(root: Path) -> None:
    folders(root / "resisc45" / "NWPU-RESISC45", ("airplane", "airport"), 145)
