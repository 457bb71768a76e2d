from __future__ import annotations

import csv
import shutil

import pytest

from esvit_pl.datasets import SkippedImage, folder
from esvit_pl.runs.bad_images import kept
from esvit_pl.runs.claim import files_of_a_run
from esvit_pl.runs.folder import RunFolder


@pytest.fixture
def some_bad(pictures, tmp_path):
    """36 pictures in three class folders, two of them broken."""
    shutil.copytree(pictures, tmp_path / "pictures")
    for name in ("red/03.jpg", "blue/07.jpg"):
        (tmp_path / "pictures" / name).write_bytes(b"broken")
    return tmp_path / "pictures"


def test_a_run_ends_at_a_bad_image_and_says_what_else_could_be_done(commands, some_bad):
    outcome = commands.pretrain(some_bad)
    assert outcome.code == 1
    assert "cannot read the image file" in outcome.err
    assert outcome.results["status"] == "failed"
    assert len((outcome.folder / "bad_images.csv").read_text().splitlines()) == 2


@pytest.mark.fault(
    "images: one cannot be read, and `dataset.on_bad_image=skip`",
    "another image takes its place; `bad_images.csv` and a line name them; more than `bad_image_budget=` end the run",
)
def test_a_run_that_skips_bad_images_names_them_at_its_end(commands, some_bad):
    outcome = commands.pretrain(some_bad, "dataset.on_bad_image=skip", "dataset.bad_image_budget=0.1")
    assert outcome.code == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if line.startswith("images that could not be read: "))
    assert line.startswith("images that could not be read: 2, and others of the same split took their places")
    assert "blue/07.jpg, red/03.jpg" in line
    with (outcome.folder / "bad_images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["image"]) for row in rows] == [("train", "blue/07.jpg"), ("train", "red/03.jpg")]
    assert "UnidentifiedImageError" in rows[0]["problem"]


def test_a_run_without_bad_images_says_nothing_of_them(pretrained):
    assert "could not be read" not in pretrained.out
    assert not (pretrained.folder / "bad_images.csv").exists()


def test_every_process_writes_what_it_has_met(some_bad, tmp_path):
    splits = folder(some_bad, on_bad_image="skip", bad_image_budget=0.1)
    for writes, index in ((True, 7), (False, 27)):
        with kept(RunFolder(tmp_path, writes=writes), splits), pytest.raises(SkippedImage):
            splits.train[index]
    assert [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("*.csv"))] == [2, 3]
    assert (tmp_path / "bad_images_0.csv").exists()  # of a process that is not the first; here its rank is 0


def test_a_resumed_run_adds_to_the_list_and_one_that_replaces_it_does_not(some_bad, tmp_path, capsys):
    for index in (7, 27):
        splits = folder(some_bad, on_bad_image="skip", bad_image_budget=0.1)
        with kept(RunFolder(tmp_path), splits), pytest.raises(SkippedImage):
            splits.train[index]
    assert len((tmp_path / "bad_images.csv").read_text().splitlines()) == 3
    assert "could not be read: 2" in capsys.readouterr().out
    assert tmp_path / "bad_images.csv" in files_of_a_run(tmp_path)


def test_a_run_that_fails_keeps_the_list(some_bad, tmp_path):
    splits = folder(some_bad, on_bad_image="skip", bad_image_budget=0.1)

    def fail():
        with pytest.raises(SkippedImage):
            splits.train[7]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kept(RunFolder(tmp_path), splits):
        fail()
    assert "blue/07.jpg" in (tmp_path / "bad_images.csv").read_text()
