"""Data of a program's own as data sets: the right pixels, classes, names and splits, or a sentence."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import ToTensor

from esvit_pl.datasets import Splits, UnreadableMetadata, folder, splits_of

COLOURS = {"cat": (250, 10, 20), "dog": (10, 250, 30), "fox": (20, 30, 250)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """cat/1.png, cat/2.png, dog/1.png, dog/2.png: 4 x 3 pixels of one colour."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in (1, 2):
            Image.new("RGB", (4, 3), COLOURS[name]).save(root / name / f"{number}.png")
    return root


def pixel(splits: Splits, index: int) -> tuple[int, ...]:
    image = splits.train[index][0]
    assert image.dtype == torch.uint8
    return tuple(image[:, 0, 0].tolist())


class Numbers(Dataset):
    """Four images, and labels for all or none."""

    def __init__(self, labels: list[Any] | None = None, image: Any = None, asked: list[int] | None = None) -> None:
        self.given, self.image, self.asked = labels, image, asked

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index >= 4:
            raise IndexError
        if self.asked is not None:
            self.asked.append(index)
        image = Image.new("RGB", (4, 3), (index, 2, 3)) if self.image is None else self.image
        return image if self.given is None else (image, self.given[index])


class Frame:
    """The part of pandas.DataFrame that is used: columns, shape, a column by its name."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns
        self.columns, self.shape = list(columns), (len(next(iter(columns.values()))), len(columns))

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self._columns[name], dtype=object)


class ClassLabel:
    names = ("cat", "dog")


class HuggingFace:
    """The part of datasets.Dataset that is used: features, column_names, rows as dicts, columns by name."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns_ = columns
        self.column_names = list(columns)
        self.features: dict[str, Any] = dict.fromkeys(columns) | {"label": ClassLabel()}

    def __len__(self) -> int:
        return len(next(iter(self.columns_.values())))

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.columns_[key]
        return {name: column[key] for name, column in self.columns_.items()}


class DatasetDict(dict):
    """datasets.DatasetDict is a dict, and tells its columns by split."""

    column_names = property(lambda self: {name: data.column_names for name, data in self.items()})


def pictures(number: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 3), (index, 2, 3)) for index in range(number)]


def hugging_face(number: int = 4, labels: list[int] | None = None) -> HuggingFace:
    return HuggingFace(image=pictures(number), label=labels or [index % 2 for index in range(number)])


# -- every kind


def test_a_list_of_paths(photos):
    splits = splits_of([photos / "dog" / "2.png", str(photos / "cat" / "1.png")])
    assert splits.classes is None
    assert [splits.train.name(index) for index in (0, 1)] == ["dog/2.png", "cat/1.png"]  # below their common folder
    assert [pixel(splits, index) for index in (0, 1)] == [COLOURS["dog"], COLOURS["cat"]]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([7, 5, 7], ["5", "7"], [1, 0, 1]),  # classes are counted: two, not eight
        ([np.int64(1), np.int64(0), np.int64(1)], ["0", "1"], [1, 0, 1]),
        ([torch.tensor(1), torch.tensor(0), torch.tensor(1)], ["0", "1"], [1, 0, 1]),
        (["10", "9", "10"], ["9", "10"], [1, 0, 1]),  # as tables write numbers
        (["\u00fc", "a", "u\u0308"], ["a", "\u00fc"], [1, 0, 1]),  # two Unicode forms of one name
        ([None, None, None], None, None),
        ([-1, -1, -1], None, None),  # torchvision's and Hugging Face's "no label"
    ],
)
def test_pairs_of_path_and_label(photos, labels, classes, numbers):
    files = [photos / "cat" / "1.png", photos / "dog" / "1.png", photos / "cat" / "2.png"]
    splits = splits_of(list(zip(files, labels, strict=True)))
    assert splits.classes == classes
    assert splits.train.labels == numbers
    assert splits.train[1][1] == (None if numbers is None else 0)


def test_a_torch_dataset_with_labels_and_without():
    asked: list[int] = []
    assert splits_of(Numbers(asked=asked)).train.labels is None
    assert set(asked) == {0}  # unlabelled images are not read twice
    splits = splits_of(Numbers(["b", "a", "b", "a"]))
    assert (splits.classes, splits.train.labels, pixel(splits, 3)) == (["a", "b"], [1, 0, 1, 0], (3, 2, 3))
    assert "labels: read once from all 4 items of Numbers" in splits.describe()


def test_labels_that_the_data_set_tells_are_not_read_from_its_items():
    asked: list[int] = []
    data = Numbers([1, 0, 1, 0], asked=asked)
    data.targets, data.classes = torch.tensor([1, 0, 1, 0]), ["no", "yes", "perhaps"]
    splits = splits_of(data)
    assert (splits.classes, splits.train.labels) == (["no", "yes", "perhaps"], [1, 0, 1, 0])
    assert set(asked) == {0}


def test_torchvision():
    splits = splits_of(FakeData(6, (3, 8, 9), num_classes=3))
    assert splits.train[0][0].shape == (3, 8, 9)
    assert splits.train.labels is not None
    scaled = splits_of(FakeData(6, (3, 8, 9), num_classes=3, transform=ToTensor()))
    assert torch.equal(scaled.train[2][0], splits.train[2][0])


def test_image_folder_gives_its_files_and_not_its_transform(photos):
    splits = splits_of(ImageFolder(str(photos), transform=lambda image: 1 / 0))
    mine = folder(photos)
    assert (splits.classes, splits.train.labels) == (mine.classes, mine.train.labels)
    assert [splits.train.name(i) for i in range(4)] == [mine.train.name(i) for i in range(4)]
    assert torch.equal(splits.train[3][0], mine.train[3][0])
    assert "its transform is not used: augment= says what happens to images" in splits.describe()


def test_subsets_and_joined_data_sets(photos):
    whole = ImageFolder(str(photos))
    part = splits_of(Subset(whole, [3, 0]))
    assert (part.classes, part.train.labels, part.train.name(0)) == (["cat", "dog"], [1, 0], "dog/2.png")
    assert (part.train[0][1], pixel(part, 0)) == (1, COLOURS["dog"])
    joined = splits_of(ConcatDataset([Subset(whole, [3]), Numbers(["fox", "cat", "fox", "cat"])]))
    assert (joined.classes, joined.train.labels) == (["cat", "dog", "fox"], [1, 2, 0, 2, 0])
    assert [joined.train.name(i) for i in (0, 4)] == ["0/dog/2.png", "1/00000003"]
    assert [pixel(joined, i) for i in (0, 1, 4)] == [COLOURS["dog"], (0, 2, 3), (3, 2, 3)]
    pair = splits_of(tuple(random_split(Numbers([0, 1, 0, 1]), [3, 1])))
    assert (len(pair.train), pair.val and len(pair.val)) == (3, 1)


def test_tensors_and_arrays_as_data():
    images = torch.zeros(4, 3, 5, 6, dtype=torch.uint8)
    images[2, 0] = 9
    for data in (images, images.permute(0, 2, 3, 1).numpy(), TensorDataset(images), list(images)):
        splits = splits_of(data)
        assert (len(splits.train), splits.train[2][0].shape, pixel(splits, 2)) == (4, (3, 5, 6), (9, 0, 0))
    labelled = splits_of(TensorDataset(images, torch.tensor([3, 4, 3, 4])))
    assert (labelled.classes, labelled.train.labels) == (["3", "4"], [0, 1, 0, 1])


def test_hugging_face():
    splits = splits_of(hugging_face())
    assert (splits.classes, splits.train.labels, pixel(splits, 2)) == (["cat", "dog"], [0, 1, 0, 1], (2, 2, 3))
    assert splits_of(HuggingFace(img=pictures(2))).train.labels is None
    both = DatasetDict(train=hugging_face(4), validation=hugging_face(2), test=hugging_face(3))
    splits = splits_of(both)
    assert (len(splits.bank), len(splits.query)) == (4, 2)
    assert "left out: test (never read)" in splits.describe()


def test_hugging_face_images_that_are_not_decoded(photos):
    file = photos / "dog" / "1.png"
    data = HuggingFace(image=[{"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": str(file)}])
    assert [pixel(splits_of(data), index) for index in (0, 1)] == [COLOURS["dog"]] * 2


def test_metadata_that_cannot_be_read_is_counted_in_own_data_too(photos):
    Image.new("RGB", (4, 3), (7, 8, 9)).save(photos / "x.png", exif=b"Exif\0\0\0\x08")
    data = [{"image": {"bytes": (photos / "x.png").read_bytes(), "path": None}}, {"image": str(photos / "x.png")}]

    def read():
        splits = splits_of(data)
        return splits, [pixel(splits, index) for index in (0, 1)]

    with pytest.warns(UnreadableMetadata, match="the metadata of <.* bytes> cannot be read .*only counted") as heard:
        splits, pixels = read()
    assert pixels == [(7, 8, 9)] * 2
    assert len({str(warning.message) for warning in heard}) == 1
    assert [name for _, name, _ in splits.problems()] == ["00000000", "00000001"]


def test_a_data_frame(photos):
    files = [str(photos / name) for name in ("cat/1.png", "dog/1.png", "dog/2.png")]
    splits = splits_of(Frame(path=files, label=["x", "y", "y"], split=["train", "train", "val"]))
    assert (splits.classes, splits.train.labels, splits.query.labels) == (["x", "y"], [0, 1], [1])
    with pytest.raises(ValueError, match=r"1 of 2 image files are missing: 'gone.png' \(row 1 of the DataFrame\)"):
        splits_of(Frame(path=[files[0], "gone.png"]))


def test_pairs_and_dicts_of_train_and_val(photos, tmp_path):
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "dog" / "9.png")
    for data in ((photos, tmp_path), {"train": photos, "val": tmp_path}, {"Training": folder(photos), "dev": tmp_path}):
        splits = splits_of(data)
        assert (splits.classes, splits.query.labels, splits.query.name(0)) == (["cat", "dog"], [1], "dog/9.png")
    mixed = splits_of(
        ([(photos / "cat" / "1.png", "cat"), (photos / "dog" / "1.png", "dog")], [(Image.new("L", (3, 3)), "dog")])
    )
    assert mixed.query.labels == [1]
    with pytest.raises(
        ValueError, match="val has 1 classes that the training images do not have: fox; there are 2: cat, dog"
    ):
        splits_of((photos, [(Image.new("L", (3, 3)), "fox")]))
    with pytest.raises(ValueError, match="a dict of data needs the key 'train', and may have 'val'; got a, b"):
        splits_of({"a": photos, "b": photos})


def test_splits_stay_as_they_are(photos):
    splits = folder(photos)
    assert splits_of(splits) is splits
    assert splits_of(photos).describe() == splits.describe()


# -- pixels


RED = [255, 0, 51]


@pytest.mark.parametrize(
    ("image", "first_pixel"),
    [
        (Image.new("RGB", (4, 3), (255, 0, 51)), RED),
        (Image.new("L", (4, 3), 7), [7, 7, 7]),
        (Image.new("RGBA", (4, 3), (255, 0, 51, 0)), [255, 255, 255]),  # transparent: the background shows
        (np.full((3, 4, 3), RED, np.uint8), RED),
        (np.full((3, 4, 3), RED, np.uint8).transpose(2, 0, 1), RED),
        (np.full((3, 4), 7, np.uint8), [7, 7, 7]),
        (np.full((3, 4, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((5, 4, 4), [*RED, 255], np.uint8), RED),
        (np.full((3, 4, 3), [1.0, 0, 0.2]), RED),
        (np.full((3, 4, 3), [1.0, 0, 0.2], np.float16), RED),
        (np.ones((3, 4), bool), [255, 255, 255]),
        (torch.tensor(RED, dtype=torch.uint8)[:, None, None].expand(3, 4, 5), RED),
        (torch.tensor([1.0, 0, 0.2])[:, None, None].expand(3, 4, 5), RED),
        (torch.full((1, 4, 5), 0.2), [51, 51, 51]),
        (torch.full((1, 4, 5), 0.2, dtype=torch.bfloat16), [51, 51, 51]),
        (torch.tensor(RED, dtype=torch.uint8).expand(4, 5, 3), RED),
    ],
)
def test_images_of_every_kind_become_the_same_pixels(image, first_pixel):
    splits = splits_of(Numbers(image=image))
    assert splits.train[0][0].shape[0] == 3
    assert list(pixel(splits, 1)) == first_pixel


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 4, 4), -2.1), r"floats holds values in 0-1, got -2.1 to -2.1; leave normalisation to augment="),
        (np.full((4, 4, 3), 255.0), "floats holds values in 0-1, got 255 to 255"),
        (np.full((4, 4), np.nan), "got nan to nan"),
        (np.zeros((4, 4, 3), np.uint16), "holds uint8, or floats in 0-1, got uint16 from 0 to 0; convert it to uint8"),
        (np.full((4, 4), 256), "got int64 from 256 to 256; scale it to floats in 0-1"),
        (np.zeros((5, 5, 2), np.uint8), r"with 1, 3 or 4 channels, got \(5, 5, 2\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"with 1, 3 or 4 channels, got \(2, 3, 4, 4\)"),
        ("gone.png", "cannot read the image file 'gone.png'"),
        ({"bytes": b"abc"}, "cannot read the image file <3 bytes>: .* it begins with b'abc'"),
        (Image.new("1", (20_000, 20_000)), "400,000,000 pixels, and dataset.max_pixels=100000000 allows fewer"),
        (b"abc", "an image is a Pillow image, an array, a tensor or a path, got bytes"),
        (None, "an image is a Pillow image, an array, a tensor or a path, got NoneType"),
    ],
)
def test_images_that_cannot_be_read_are_refused_before_a_training_begins(image, message):
    data = Numbers([0, 0, 0, 0], image=0)
    data.image = image
    if image is None:
        data = [(None, 0)] * 4
    with pytest.raises(ValueError, match=rf"item 0 of the data \(\w+\): .*{message}"):
        splits_of(data)


# -- what is refused


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "data is int, 5: it must be a folder, the name of a dataset, a CSV.* a Hugging Face dataset"),
        ({1, 2}, "data is set, .*: it must be a folder"),
        (object(), "data is object, .*: it must be a folder"),
        ((number for number in ()), "data is generator, .*: an iterator is empty after one pass; make a list of it"),
        (Stream(), "data is Stream, .*: a stream has no length, and cannot be shuffled"),
        (DataLoader([1]), "data is DataLoader, .*: batches are made here; give its dataset"),
        ([], r"the train split \(list\) holds no image"),
        (([np.zeros((4, 4), np.uint8)], ()), r"the val split \(tuple\) holds no image"),
        ((np.zeros((4, 4, 4, 3), np.uint8), [0, 1, 0, 1]), r"\(train, val\); labels go with their images: list\(zip"),
        (np.zeros((8, 9, 3), np.uint8), r"one image of shape \(8, 9, 3\); give several"),
        (torch.zeros(3, 8, 9), r"one image of shape \(3, 8, 9\); give several"),
        ("nowhere", "the folder 'nowhere' does not exist"),
        (["nowhere.jpg"], r"1 of 1 image files are missing: '/.*/nowhere.jpg' \(item 0\) does not exist$"),
        (["a.jpg", 5], "item 1 of the list is no path as the first is: 5"),
        ([("a.jpg", 1), "b.jpg"], r"item 1 of the list is no pair \(path, label\) as the first is: 'b.jpg'"),
        (Numbers([0, None, 1, 0]), "1 of 4 labels are missing; the first is that of item 1"),
        (Numbers([0, "cat", 1, 0]), "some labels are names and others are numbers"),
        (
            Numbers([0, 0.5, 1, 0]),
            r"the label of item 1 is 0.5 \(float\); a label is the name of the class or its number",
        ),
        (Numbers([0, [1, 0], 1, 0]), r"the label of item 1 is \[1, 0\] \(list\)"),
        (Numbers([0, torch.eye(2)[0], 1, 0]), r"the label of item 1 is tensor\(\[1., 0.\]\) \(Tensor\)"),
        (Numbers([0, np.eye(2)[0], 1, 0]), r"the label of item 1 is array\(\[1., 0.\]\) \(ndarray\)"),
        (Numbers([0, 0, 1]), r"label of item 3 of the data \(Numbers\) cannot be read: IndexError: .* targets"),
        (HuggingFace(picture=[1]), "has no column 'image' or 'img'; rename one of picture"),
    ],
)
def test_anything_else_gets_a_sentence(data, message):
    with pytest.raises(ValueError, match=message):
        splits_of(data)


# -- other processes


def test_every_kind_reaches_spawned_processes(photos):
    kinds = [
        folder(photos),
        splits_of([photos / "cat" / "1.png"] * 2),
        splits_of([(photos / "cat" / "1.png", "a"), (photos / "cat" / "2.png", "b")]),
        splits_of(Numbers(["b", "a", "b", "a"])),
        splits_of(ConcatDataset([Subset(ImageFolder(str(photos)), [0]), ImageFolder(str(photos))])),
        splits_of(hugging_face()),
        splits_of(Frame(path=[str(photos / "cat" / "1.png")] * 2)),
        splits_of(torch.zeros(2, 3, 4, 4)),
    ]
    for splits in kinds:
        copy = pickle.loads(pickle.dumps(splits.train))
        assert torch.equal(copy[1][0], splits.train[1][0])
        assert copy[1][1] == splits.train[1][1]
    joined = torch.utils.data.ConcatDataset([splits.train for splits in kinds])
    loader = DataLoader(joined, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for (image, label), (mine, own) in zip(loader, joined, strict=True):
        assert torch.equal(image, mine)
        assert label == own
