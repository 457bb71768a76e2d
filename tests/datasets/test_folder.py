from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from esvit_pl.datasets import folder, imagenet


def put(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 2, 3)).save(path, format="PNG")


def names(dataset) -> list[str]:
    return [dataset.name(i) for i in range(len(dataset))]


def test_class_folders_give_labels_in_the_order_of_the_names(tmp_path):
    put(tmp_path, "dog/2.png", "cat/1.png", "dog/1.png")
    splits = folder(tmp_path)
    assert splits.classes == ["cat", "dog"]
    assert names(splits.train) == ["cat/1.png", "dog/1.png", "dog/2.png"]
    assert splits.train.labels == [0, 1, 1]
    image, label = splits.train[2]
    assert label == 1
    assert image.tolist() == [[[value] * 4] * 3 for value in (0, 2, 3)]  # the first file written
    assert splits.val is None


@pytest.mark.parametrize("where", [["1.png", "2.png"], ["a/1.png", "2.png"], ["a/b/1.png", "a/c/2.png"], ["a/1.png"]])
def test_flat_nested_or_single_folders_have_no_labels(tmp_path, where):
    put(tmp_path, *where)
    splits = folder(tmp_path)
    assert splits.train.labels is None
    assert splits.classes is None
    assert splits.train[0][1] is None
    assert names(splits.train) == sorted(where)


def test_labels_can_be_ignored_or_asked_for(tmp_path):
    put(tmp_path, "a/deep/er/1.png", "b/2.png")
    assert folder(tmp_path).classes is None
    assert folder(tmp_path, labels="folders").train.labels == [0, 1]
    assert folder(tmp_path, labels="none").train.labels is None
    put(tmp_path, "3.png")
    assert names(folder(tmp_path, labels="folders").train) == ["a/deep/er/1.png", "b/2.png"]


def test_the_layout_can_be_settled_by_hand(tmp_path):
    put(tmp_path, "train/1.png", "plane/2.png")
    with pytest.raises(ValueError, match=r"layout=splits means .*layout=classes means .*layout=flat takes all images"):
        folder(tmp_path)
    assert names(folder(tmp_path, layout="splits").train) == ["1.png"]
    assert folder(tmp_path, layout="classes").classes == ["plane", "train"]
    assert names(folder(tmp_path, layout="flat").train) == ["plane/2.png", "train/1.png"]


def test_train_and_val_folders(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/b/3.png", "test/c/4.png")
    splits = folder(tmp_path)
    assert splits.train.labels == [0, 1]
    assert splits.query.labels == [1]
    assert names(splits.query) == ["b/3.png"]


def test_a_class_that_is_called_train_is_a_class(tmp_path):
    put(tmp_path, "train/1.png", "plane/2.png", "bus/3.png")
    assert folder(tmp_path).classes == ["bus", "plane", "train"]


def test_unlabelled_train_and_val(tmp_path):
    put(tmp_path, "train/1.png", "val/3.png")
    splits = folder(tmp_path)
    assert splits.train.labels is splits.query.labels is None
    assert names(splits.query) == ["3.png"]


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="missing' does not exist"):
        folder(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no image below .* looked for jpg jpeg .*, in upper or lower case"):
        folder(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="no image below"):
        folder(tmp_path)
    with pytest.raises(ValueError, match="is a file; give a folder of images"):
        folder(tmp_path / "x.txt")
    for name, message in (("x.zip", "is an archive, which is not read yet"), ("x.csv", "read by dataset=table")):
        (tmp_path / name).write_text("x")
        with pytest.raises(ValueError, match=message):
            folder(tmp_path / name)
    for root in ("", " ", None):  # an empty path would mean the working directory
        with pytest.raises(ValueError, match=r"root is empty; give the folder of your images \(dataset.root=FOLDER"):
            folder(root)
    for root in ("a" * 300, "a\0b"):
        with pytest.raises(ValueError, match="cannot be opened"):
            folder(root)
    with pytest.raises(ValueError, match="labels must be 'auto', 'folders' or 'none', got 'yes'"):
        folder(tmp_path, labels="yes")


def test_val_may_have_no_class_of_its_own(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/c/3.png")
    with pytest.raises(
        ValueError, match=r"1 class folders that the training images do not have: c; there are 2 classes: a, b"
    ):
        folder(tmp_path)


def test_imagenet_wants_both_folders_sorted_into_classes(tmp_path):
    put(tmp_path, "train/n01/1.JPEG", "train/n02/1.JPEG")
    with pytest.raises(ValueError, match="has no folder 'val'"):
        imagenet(tmp_path)
    put(tmp_path, "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ValueError, match="and not in class folders"):
        imagenet(tmp_path)
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    put(tmp_path, "val/n02/1.JPEG")
    splits = imagenet(tmp_path)
    assert (splits.classes, splits.train.labels, splits.query.labels) == (["n01", "n02"], [0, 1], [1])
