"""What a folder means. The rows are the table in docs/data.md, so that the page and the code cannot differ."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from esvit_pl.datasets.layout import read_layout, split_named
from esvit_pl.datasets.listing import EXTENSIONS, Listing, ending, parents

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def listing(*paths: str) -> Listing:
    """Of files, and of empty folders, whose names end with a slash; `a/{1..3}.jpg` are three files."""
    images: dict[str, list[str]] = {"": []}
    others: dict[str, Counter[str]] = {}
    for path in (path for given in paths for path in expanded(given)):
        folder, _, name = path.rpartition("/")
        for around in (folder, *parents(folder)):
            images.setdefault(around, [])
        if name and name.lower().endswith(EXTENSIONS):
            images[folder].append(name)
        elif name:
            others.setdefault(folder, Counter())[ending(name)] += 1
    return Listing("photos", images, others)


def expanded(path: str) -> list[str]:
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if not numbers:
        return [path]
    first, last = map(int, numbers.groups())
    return [path.replace(numbers[0], str(number)) for number in range(first, last + 1)]


def rows() -> list[list[str]]:
    """The cells of the table of folders."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| `photos/` holds"))
    table = lines[start + 2 :]
    table = table[: next((number for number, line in enumerate(table) if not line.startswith("|")), len(table))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def count(found: Listing, part) -> int:
    return sum(len(found.images[folder]) for folder in part.folders)


@pytest.mark.parametrize(("holds", "train", "val", "classes", "left_out"), rows(), ids=lambda cell: cell[:40])
def test_a_folder_means_what_the_page_says(holds, train, val, classes, left_out):
    words = re.findall(r"`([^`]+)`", holds)
    found = listing(*words[0].split())
    asked = dict(word.removeprefix("dataset.").split("=") for word in words[1:])
    if train == "refused":
        with pytest.raises(ValueError, match=re.escape(left_out.replace("`", ""))):
            read_layout(found, **asked)
        return
    layout = read_layout(found, **asked)
    assert count(found, layout.train) == int(train)
    assert (count(found, layout.val) if layout.val else None) == (int(val) if val != "-" else None)
    assert layout.classes == (None if classes == "-" else classes.split())
    assert ", ".join(layout.left_out) == ("" if left_out == "-" else left_out.replace("`", ""))


def test_the_spellings_of_the_splits():
    named = {
        "train": "train Train TRAIN training Training train2017 train_images training_set train-set images_train",
        "val": "val Val valid validation Validation dev eval val2017 validation_data",
        "test": "test Test testing test_set test2017",
    }
    for split, names in named.items():
        assert {name: split_named(name) for name in names.split()} == dict.fromkeys(names.split(), split)
    for name in ("trains", "trainer", "value", "tests", "contest", "latest", "cat", "devil", "2017", "images", ""):
        assert split_named(name) is None, name


def test_labels_go_with_the_folders_of_the_training_images():
    layout = read_layout(listing("train/b/1.png", "train/a/2.png", "val/B/3.png", "val/a/4.png"))
    assert layout.train.folders == {"train/b": 1, "train/a": 0}
    assert layout.val is not None
    assert layout.val.folders == {"val/B": 1, "val/a": 0}  # but for the case of its letters, the same class


def test_the_two_unicode_forms_of_a_name_are_one_class():
    composed, decomposed = "\u00fc", "u\u0308"
    layout = read_layout(listing(f"train/{composed}/1.png", "train/a/2.png", f"val/{decomposed}/3.png"))
    assert layout.classes == ["a", composed]
    assert layout.val is not None
    assert layout.val.folders == {f"val/{decomposed}": 1}


def test_classes_that_differ_in_case_alone_are_two_and_said():
    layout = read_layout(listing("A/1.png", "a/2.png", "b/3.png"))
    assert layout.classes == ["A", "a", "b"]
    assert layout.notes() == ("layout: 3 classes (A and a are different classes): A, a, b",)


def test_the_lines_that_are_printed():
    files = ("Train/cat/1.jpg", "Train/dog/2.jpg", "Train/3.jpg", "Train/x.heic", "Train/y.HEIC", "Train/z")
    layout = read_layout(listing(*files, "valid/cat/4.jpg", "test/5.jpg", "notes/a.txt", "Train/fish/"))
    assert layout.notes() == (
        "layout: Train/ and valid/ are the splits; 2 classes: cat, dog",
        "left out: Train/3.jpg (outside class folders), notes/ (no image), test/ (1 image, never read), "
        "Train/fish/ (no image), 2 .heic, 1 without an extension",
    )


def test_names_are_safe_to_print():
    layout = read_layout(listing("a\nb/1.png", "c\udcff/2.png", "d\x1b[31m/"))
    assert layout.notes() == (
        r"layout: 2 classes: a\nb, c\udcff",
        r"left out: d\x1b[31m/ (no image)",
    )


def test_settings_that_are_wrong_or_contradict_each_other():
    for settings, message in (
        ({"layout": "class"}, "layout must be 'auto', 'classes', 'flat' or 'splits', got 'class'"),
        ({"labels": "yes"}, "labels must be 'auto', 'folders' or 'none', got 'yes'"),
        ({"layout": "classes", "labels": "none"}, "layout=classes and labels=none contradict each other"),
        ({"layout": "flat", "labels": "folders"}, "layout=flat and labels=folders contradict each other"),
        ({"layout": "splits"}, "layout=splits needs a folder of training images in 'photos', called train or training"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            read_layout(listing("a/1.png", "b/2.png"), **settings)


def test_without_an_image_the_message_says_what_is_there():
    with pytest.raises(ValueError, match=r"no image below 'photos': looked for jpg .*; there are 2 .heic, 1 .mp4"):
        read_layout(listing("a/1.heic", "2.heic", "3.mp4"))
