"""Every loader of the transfer suites on a miniature in the real layout: names, labels and pixels worked by hand."""

from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
import transfer_files
from PIL import Image

from esvit_pl.datasets.catalogue import CATALOGUE, SUITES, load, missing
from esvit_pl.evaluation.names import COUNTED


def read(name, root):
    return load(name, root, check_counts=False)


def named(dataset) -> list[str]:
    return [dataset.name(index) for index in range(len(dataset))]


@pytest.fixture
def no_checksums(monkeypatch):
    """torchvision compares some files with the checksums of the real ones."""
    for module in ("cifar", "flowers102", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: True)


@pytest.mark.parametrize(
    ("name", "parts", "classes"),
    [
        (
            "dtd",
            {
                split: {f"dtd/dtd/images/{c}/{c}_{split}0.jpg": label for label, c in enumerate(("banded", "dotted"))}
                for split in ("train", "val", "test")
            },
            ["banded", "dotted"],
        ),
        (
            "pets",
            {
                split: {f"oxford-iiit-pet/images/{c}_{n}.jpg": i for i, c in enumerate(("Abyssinian", "basset_hound"))}
                for split, n in (("train", 1), ("test", 101))
            },
            ["Abyssinian", "Basset Hound"],
        ),
        (
            "flowers102",
            {
                split: {f"flowers-102/jpg/image_{n:05d}.jpg": label for n, label in ids.items()}
                for split, ids in (("train", {2: 0, 5: 1}), ("val", {3: 0, 6: 1}), ("test", {1: 0, 4: 1}))
            },
            None,  # the names of all 102
        ),
        (
            "food101",
            {
                split: {f"food-101/images/{c}/{n}.jpg": label for c, label in (("pizza", 1), ("apple_pie", 0))}
                for split, n in (("train", 1), ("test", 2))
            },
            ["apple_pie", "pizza"],
        ),
        (
            "aircraft",
            {
                split: {f"fgvc-aircraft-2013b/data/images/{n}{i}.jpg": label for i, label in ((0, 1), (1, 0))}
                for split, n in (("train", 11), ("val", 22), ("test", 33))
            },
            ["707-320", "A300 B4"],
        ),
        (
            "gtsrb",
            {
                "train": {f"gtsrb/GTSRB/Training/0000{label}/00000_00000.ppm": label for label in (0, 1)},
                "test": {f"gtsrb/GTSRB/Final_Test/Images/0000{n}.ppm": 1 - n for n in (0, 1)},
            },
            ["0", "1"],
        ),
        (
            "country211",
            {
                split: {f"country211/{folder}/{c}/{folder}.jpg": label for label, c in enumerate(("AD", "ZW"))}
                for split, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
            },
            ["AD", "ZW"],
        ),
        (
            "rendered_sst2",
            {
                split: {f"rendered-sst2/{f}/{c}/{f}.png": label for label, c in enumerate(("negative", "positive"))}
                for split, f in (("train", "train"), ("val", "valid"), ("test", "test"))
            },
            ["negative", "positive"],
        ),
        (
            "cars",
            {split: {f"stanford_cars/cars_{split}/0000{n}.jpg": 2 - n for n in (1, 2)} for split in ("train", "test")},
            ["AM General", "Acura"],
        ),
        (
            "hateful_memes",
            {"train": {"img/42953.png": 1, "img/08291.png": 1}, "test": {"img/08192.png": 0}},
            ["harmless", "hateful"],
        ),
        (
            "sun397",
            {
                split: {f"a/apartment_building/outdoor/sun_{n}.jpg": 1, f"a/abbey/sun_{n}.jpg": 0}
                for split, n in (("train", 1), ("test", 2))
            },
            ["abbey", "apartment_building/outdoor"],
        ),
        (
            "ucf101",
            {
                split: {f"frames/{c}/v_{c}_{g}_c01.jpg": i for c, i in (("Archery", 1), ("ApplyEyeMakeup", 0))}
                for split, g in (("train", "g08"), ("test", "g01"))
            },
            ["ApplyEyeMakeup", "Archery"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_and_their_labels(name, parts, classes, tmp_path, no_checksums):
    getattr(transfer_files, CATALOGUE[name].read.__name__)(tmp_path)
    splits = read(name, tmp_path)
    for split in ("train", "val", "test"):
        images, wanted = getattr(splits, split), parts.get(split)
        assert (images is None) == (wanted is None)
        if wanted is not None:
            assert dict(zip(named(images), images.labels, strict=True)) == wanted
            for index, label in enumerate(images.labels):  # the brightest channel is the class
                assert int(images[index][0].float().mean((1, 2)).argmax()) == label
    assert splits.classes == classes or len(splits.classes) == 102
    assert splits.metric == CATALOGUE[name].metric
    assert splits.query is splits.test


@pytest.mark.parametrize(("name", "numbers"), [("cifar10", (10, 2)), ("cifar100", (2, 2))])
def test_cifar(name, numbers, tmp_path, no_checksums):
    getattr(transfer_files, name)(tmp_path)
    splits = read(name, tmp_path)
    assert (len(splits.train), len(splits.test)) == numbers
    assert splits.train.labels == [0, 1] * (numbers[0] // 2)
    first = torch.from_numpy(transfer_files.colour(1, 1, (32, 32))).permute(2, 0, 1)
    assert torch.equal(splits.train[1][0], first)
    assert splits.test.name(1) == "test/000001"
    assert splits.classes == (["airplane", "automobile"] if name == "cifar10" else ["apple", "baby"])


def test_mnist_is_grey_in_three_channels(tmp_path):
    transfer_files.mnist(tmp_path)
    splits = read("mnist", tmp_path)
    assert (splits.train.labels, splits.test.labels) == ([3, 0], [1, 1, 9])
    image = splits.test[1][0]
    assert image.shape == (3, 28, 28)
    assert image[:, 0, 1].tolist() == [(28 * 28 + 1) % 256] * 3
    assert len(splits.classes) == 10


def test_stl10(tmp_path, no_checksums):
    transfer_files.stl10(tmp_path)
    splits = read("stl10", tmp_path)
    assert (splits.train.labels, splits.test.labels) == ([1, 0], [0, 0, 1])
    assert splits.classes == ["airplane", "bird"]
    assert torch.equal(splits.test[2][0], torch.from_numpy(transfer_files.colour(1, 2, (96, 96))).permute(2, 0, 1))


def test_pcam(tmp_path):
    pytest.importorskip("h5py")
    transfer_files.pcam(tmp_path)
    splits = read("pcam", tmp_path)
    assert [part.labels for part in (splits.train, splits.val, splits.test)] == [[0, 1], [1], [1, 0]]
    image, label = splits.test[0]
    assert label == 1
    assert torch.equal(image, torch.from_numpy(transfer_files.colour(1, 0, (96, 96))).permute(2, 0, 1))
    assert splits.bank.name(2) == "val/000000"
    assert splits.test.content_digest() != splits.train.content_digest()


def test_voc2007_knows_what_is_difficult(tmp_path):
    """1: in the image; 0: not; -1: only as an object that is difficult to see."""
    transfer_files.voc2007(tmp_path)
    splits = read("voc2007", tmp_path)
    found = {split: getattr(splits, split).memberships for split in ("train", "val", "test")}
    places = {name: splits.classes.index(name) for name in ("cat", "dog", "person")}
    rows = np.concatenate(list(found.values()))
    assert rows.shape == (5, 20)
    assert rows[:, places["cat"]].tolist() == [1, 1, 0, 0, 0]
    assert rows[:, places["dog"]].tolist() == [1, -1, 0, 0, 0]
    assert rows[:, places["person"]].tolist() == [0, 0, -1, 0, 1]
    assert np.abs(rows).sum() == 6
    assert splits.metric == "map11"
    assert splits.train[0][1].tolist() == rows[0].tolist()


@pytest.mark.parametrize("file", ["fer2013.csv", "icml_face_data.csv"])
def test_fer2013_by_usage(file, tmp_path):
    transfer_files.fer2013(tmp_path, file)
    splits = read("fer2013", tmp_path)
    assert [part.labels for part in (splits.train, splits.val, splits.test)] == [[3, 6], [0], [3]]
    assert splits.val[0][0].unique().tolist() == [9]
    assert splits.test[0][0].shape == (3, 48, 48)
    assert splits.classes[6] == "neutral"


@pytest.mark.parametrize("mapping", ["mapping", "devkit_object/mapping"])
def test_kitti_says_how_far_the_nearest_vehicle_is(tmp_path, mapping):
    """By hand: `RandomState(123)` takes the fifth of ten videos for the test and the fourth for val; the last video
    holds image 0, the first one image 9."""
    transfer_files.kitti(tmp_path)
    home = tmp_path / "Kitti" / "raw"
    (home / mapping).parent.mkdir(exist_ok=True)
    (home / "mapping").rename(home / mapping)
    splits = read("kitti", tmp_path)
    assert splits.classes == ["nearest vehicle up to 8 m", "8 to 20 m", "more than 20 m", "no vehicle"]
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [8, 1, 1]
    assert (named(splits.val), named(splits.test)) == (["training/image_2/000006.png"], ["training/image_2/000005.png"])
    labels = {name: label for part in parts for name, label in zip(named(part), part.labels, strict=True)}
    assert labels == {f"training/image_2/{number:06d}.png": number % 4 for number in range(10)}


@pytest.mark.parametrize("validation", ["validation", None])
def test_what_hugging_face_has_saved_is_read_in_place_of_the_files(tmp_path, validation):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["banded", "dotted"])})
    pictures = {
        split: [Image.fromarray(transfer_files.colour(label, number)) for label in (1, 0)]
        for number, split in enumerate(("train", validation, "test"))
        if split is not None
    }
    saved = {
        split: datasets.Dataset.from_dict({"image": some, "label": [1, 0]}, features=kinds)
        for split, some in pictures.items()
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "hugging_face" / "dtd")
    assert missing("dtd", tmp_path) is None
    splits = read("dtd", tmp_path)
    assert splits.classes == ["banded", "dotted"]
    assert (splits.val is None) == (validation is None)
    assert (named(splits.test), splits.test.labels) == (["test/000000", "test/000001"], [1, 0])
    assert torch.equal(splits.test[1][0], torch.from_numpy(transfer_files.colour(0, 2)).permute(2, 0, 1))
    with pytest.raises(ValueError, match="DTD must have 47 classes, got 2"):
        load("dtd", tmp_path)


def test_classes_that_hugging_face_has_saved_as_words_are_numbered_by_train(tmp_path):
    """The test lacks the first class; numbered by itself it would call "dotted" 0."""
    datasets = pytest.importorskip("datasets")
    picture = Image.new("RGB", (8, 8))
    words = {"train": ["banded", "dotted", "lined"], "test": ["lined", "dotted"]}
    saved = {split: {"image": [picture] * len(some), "label": some} for split, some in words.items()}
    folder = tmp_path / "hugging_face" / "dtd"
    datasets.DatasetDict({split: datasets.Dataset.from_dict(some) for split, some in saved.items()}).save_to_disk(
        folder
    )
    splits = read("dtd", tmp_path)
    assert splits.classes == ["banded", "dotted", "lined"]
    assert (splits.train.labels, splits.test.labels) == ([0, 1, 2], [2, 1])


def test_what_hugging_face_has_saved_without_a_test_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))], "label": [0]})
    datasets.DatasetDict({"train": one, "validation": one}).save_to_disk(tmp_path / "hugging_face" / "dtd")
    said = r"DTD in .*hugging_face/dtd' cannot be read: it must have .*got train, validation\. Save it again"
    with pytest.raises(ValueError, match=said):
        read("dtd", tmp_path)


def test_other_places_of_the_same_files(tmp_path):
    transfer_files.sun397(tmp_path, lists=".")
    assert len(read("sun397", tmp_path).train) == 2
    transfer_files.hateful_memes(tmp_path, dev="dev_seen.jsonl")
    assert len(read("hateful_memes", tmp_path).test) == 1


# -- splits that are made here


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("caltech101", {"train": 30, "test": 3}),
        ("eurosat", {"train": 500, "val": 500, "test": 500}),
        ("resisc45", {"train": 70, "val": 70, "test": 5}),
    ],
)
def test_a_hash_of_the_path_parts_the_images_of_each_class(name, sizes, tmp_path):
    getattr(transfer_files, name)(tmp_path)
    splits = read(name, tmp_path)
    parts = {split: part for split in ("train", "val", "test") if (part := getattr(splits, split)) is not None}
    assert {split: np.bincount(part.labels).tolist() for split, part in parts.items()} == {
        split: [size, size] for split, size in sizes.items()
    }
    together = [image for part in parts.values() for image in named(part)]
    assert len(together) == len(set(together))
    for number, kind in enumerate(splits.classes):  # by hand: the order of the hashes
        files = sorted(path.name for path in (tmp_path / CATALOGUE[name].folder).rglob(f"{kind}_*.jpg"))
        order = sorted(
            (f"{kind}/{file}" for file in files), key=lambda path: blake2b(path.encode(), digest_size=8).digest()
        )
        mine = [
            image
            for part in parts.values()
            for image, label in zip(named(part), part.labels, strict=True)
            if label == number
        ]
        assert mine == order[: sum(sizes.values())]
    assert "split: made here by a hash of each image's path" in splits.describe()


# -- counts


def test_a_wrong_count_is_refused_by_name(tmp_path):
    transfer_files.dtd(tmp_path)
    with pytest.raises(ValueError, match="DTD must have 47 classes, got 2"):
        load("dtd", tmp_path)
    transfer_files.rendered_sst2(tmp_path)
    with pytest.raises(ValueError, match=r"Rendered SST2 must have 6,920 images of train, got 2: not complete\?"):
        load("rendered_sst2", tmp_path)


def test_right_counts_pass_and_a_class_without_images_does_not(tmp_path, monkeypatch):
    transfer_files.dtd(tmp_path, each=2)
    small = CATALOGUE["dtd"]._replace(classes=2, images={"train": 4, "val": 4, "test": 4})
    monkeypatch.setitem(CATALOGUE, "dtd", small)
    assert len(load("dtd", tmp_path).bank) == 8
    names = [f"banded/banded_test{i}.jpg" for i in (0, 1, 0, 1)]
    transfer_files.write(tmp_path / "dtd/dtd/labels/test1.txt", names)
    with pytest.raises(ValueError, match="DTD has 1 of 2 classes without an image of test"):
        load("dtd", tmp_path)


def test_what_is_not_there_says_how_to_get_it(tmp_path):
    assert missing("dtd", tmp_path) == f"torchvision.datasets.DTD('{tmp_path}', download=True)"
    assert "its licence must be signed" in missing("hateful_memes", tmp_path)
    with pytest.raises(ValueError, match=r"Cars is not in '.*': there is no folder stanford_cars. Get it: by hand"):
        load("cars", tmp_path)
    with pytest.raises(ValueError, match="there is no data set imagenet; there are cifar10, cifar100,"):
        missing("imagenet", tmp_path)


def test_half_a_data_set_cannot_be_read(tmp_path):
    transfer_files.pets(tmp_path)
    (tmp_path / "oxford-iiit-pet/images/Abyssinian_1.jpg").unlink()
    with pytest.raises(ValueError, match=r"Pets in .* cannot be read: 1 of 2 files are missing .*Get it: torchvision"):
        read("pets", tmp_path)
    (tmp_path / "SUN397").mkdir()
    with pytest.raises(ValueError, match=r"SUN397 in .* cannot be read: .*Training_01.txt and Testing_01.txt"):
        read("sun397", tmp_path)


def test_the_suites_hold_what_their_names_say():
    assert {name: len(suite.datasets) for name, suite in SUITES.items()} == {
        "quick": 4,
        "clip18": 18,
        "elevater20": 20,
    }
    for suite in SUITES.values():
        assert set(suite.datasets) <= set(CATALOGUE)
        assert len(set(suite.datasets)) == len(suite.datasets)
    assert "sun397" not in SUITES["elevater20"].datasets
    assert "could not be checked" in SUITES["clip18"].note


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_page_says_what_the_catalogue_says(name):
    entry = CATALOGUE[name]
    counts = " / ".join(
        f"{entry.images[split]:,}" if split in entry.images else "-" for split in ("train", "val", "test")
    )
    suites = [number for suite, number in (("clip18", "18"), ("elevater20", "20")) if name in SUITES[suite].datasets]
    page = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text(encoding="utf-8").replace("*", "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    (row,) = [row for row in rows if entry.title in row[0].split(", ") or row[0].endswith(f" {entry.title}")]
    assert row[1] == " ".join(suites)
    assert str(entry.classes) in row[2].split(", ")
    assert row[3:5] == [counts, COUNTED[entry.metric]]


def test_every_data_set_has_a_miniature_here():
    assert all(hasattr(transfer_files, entry.read.__name__) for entry in CATALOGUE.values())


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "pcam").mkdir()
    with pytest.raises(ValueError, match=r"PatchCamelyon in .* cannot be read: h5py is not found.*Get it: torchvision"):
        read("pcam", tmp_path)
