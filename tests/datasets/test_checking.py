from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from esvit_pl.datasets import ArrayDataset, Splits, check, folder


def noise(number, size=(120, 160), channels=3):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, channels), dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """Twelve training and four validation images in two classes, and one of everything that is told."""
    root = tmp_path / "photos"
    for number in range(16):
        place = root / ("train" if number < 12 else "val") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise(number).save(place / f"{number:02d}.png")
    a = root / "train" / "a"
    (a / "broken.png").write_bytes(b"nothing")
    (a / "cut.png").write_bytes((a / "00.png").read_bytes()[:2000])
    (a / "empty.png").touch()
    Image.fromarray(np.random.default_rng(0).random((120, 160)).astype(np.float32)).save(a / "float.tif")
    noise(90, (10, 15)).save(a / "tiny.png")
    noise(91, (100, 500)).save(a / "long.png")
    Image.new("RGB", (120, 120), (1, 2, 3)).save(a / "plain.png")
    noise(92, channels=4).save(a / "alpha.png")
    noise(93).save(a / "metadata.webp", exif=b"Exif\0\0\0\x08", lossless=True)
    shutil.copy(a / "02.png", root / "train" / "b" / "again.png")
    Image.open(a / "04.png").save(a / "other_bytes.tif")
    shutil.copy(a / "06.png", root / "val" / "a" / "leak.png")
    return root


EXPECTED = {
    ("train", "a/broken.png", "broken", "ends"),
    ("train", "a/cut.png", "broken", "ends"),
    ("train", "a/empty.png", "refused", "ends"),
    ("train", "a/float.tif", "refused", "ends"),
    ("train", "a/tiny.png", "tiny", "read"),
    ("train", "a/long.png", "long", "read"),
    ("train", "a/plain.png", "one colour", "read"),
    ("train", "a/alpha.png", "converted", "read, alpha over the background"),
    ("train", "a/metadata.webp", "metadata", "read"),
    ("train", "b/again.png", "duplicate", "read"),
    ("train", "a/other_bytes.tif", "duplicate", "read"),
    ("val", "a/leak.png", "leak", "read"),
}


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_everything_is_found_and_nothing_else(root, tmp_path, num_workers):
    report = check(folder(root), tmp_path / "x.csv", num_workers=num_workers)
    rows = table(tmp_path / "x.csv")
    assert {(row["split"], row["image"], row["kind"], row["run"]) for row in rows} == EXPECTED
    assert len(rows) == len(EXPECTED)
    assert dict(report.counts) == {kind: sum(row["kind"] == kind for row in rows) for kind in report.counts}
    assert (report.images, report.named) == (28, 12)
    assert report.ends.startswith("a run on these images would end at the first bad one")
    details = {row["image"]: row["detail"] for row in rows}
    assert details["b/again.png"] == "the same bytes as train a/02.png, with another label"
    assert details["a/other_bytes.tif"] == "the same pixels as train a/04.png"
    assert details["a/leak.png"] == "the same bytes as train a/06.png"
    assert details["a/tiny.png"] == "15 x 10"
    assert "value_range" in details["a/float.tif"]
    assert "  broken      2  files that cannot be decoded: a/broken.png, a/cut.png\n" in str(report)


def test_the_settings_of_the_run_count(root, tmp_path):
    splits = folder(root, value_range=[0, 1], on_bad_image="skip", bad_image_budget=0.2)
    report = check(splits, tmp_path / "x.csv", smallest=5, longest=10)
    rows = {(row["image"], row["kind"]): row for row in table(tmp_path / "x.csv")}
    assert rows["a/broken.png", "broken"]["run"] == "takes another image"
    assert rows["a/float.tif", "converted"]["detail"] == "TIFF, F: 0-1 by value_range"
    assert {"tiny", "long"}.isdisjoint(report.counts)
    assert report.ends == ""
    few = check(folder(root, on_bad_image="skip"), tmp_path / "x.csv")
    assert few.ends.startswith("a run on these images would end: 4 of 23 are bad, and dataset.bad_image_budget=0.01")


def test_the_same_picture_in_bank_and_query_is_a_leak_too(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(30):
        noise(number % 15).save(tmp_path / "photos" / f"{number:02d}.png")
    splits = folder(tmp_path / "photos", val_fraction=0.3)
    report = check(splits, tmp_path / "x.csv")
    queries = {splits.query.name(index) for index in range(len(splits.query))}
    apart = [(f"{n:02d}.png" in queries) != (f"{n + 15:02d}.png" in queries) for n in range(15)]
    assert sum(apart) > 0
    assert dict(report.counts) == {"leak": sum(apart), "duplicate": 15 - sum(apart)}


def test_a_run_would_end_where_no_image_of_a_part_is_left(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(6):
        noise(number).save(tmp_path / "photos" / f"{number}.png")
    splits = folder(tmp_path / "photos", on_bad_image="skip")
    (tmp_path / "photos" / splits.query.name(0)).write_bytes(b"broken")
    assert len(splits.query) == 1
    report = check(splits, tmp_path / "x.csv")
    assert report.ends.startswith("a run on these images would end: no image of query can be read")


def test_images_without_files_are_looked_at_too(tmp_path):
    import torch

    images = torch.randint(0, 256, (6, 3, 100, 100), dtype=torch.uint8)
    images[3], images[4] = images[1], 7
    report = check(Splits(ArrayDataset(images, list("abcdef"))), tmp_path / "x.csv")
    assert report.counts["one colour"] == 1
    assert report.counts["leak"] + report.counts["duplicate"] == 1
    assert check(Splits(ArrayDataset(images[:3], list("abc"))), tmp_path / "x.csv").counts == {}
