"""What is listed of a folder: every image once; never system files, runs of this library, or what is no file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from esvit_pl.datasets.decode import FORMATS
from esvit_pl.datasets.listing import EXTENSIONS, list_images, shown


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def images(root: Path) -> list[str]:
    found = list_images(root).images
    return sorted(f"{folder}/{name}".lstrip("/") for folder, names in found.items() for name in names)


RUNS = {
    "a command's run": ("logs/pretrain/runs/1", ["config.yaml", "results.json", ".hydra/config.yaml", "figures/x.png"]),
    "a run that began a moment ago": ("logs/pretrain/runs/1", [".hydra/config.yaml", "figures/x.png"]),
    "a run of pretrain() with out=": (
        "mine",
        ["results.json", "config.yaml", "checkpoints/last.ckpt", "figures/x.png"],
    ),
    "an evaluation": ("measured", ["results.json", "knn/results.json", "figures/comparison.png"]),
    "a sweep": ("logs/pretrain/multiruns/1", ["multirun.yaml", "sweep.png", "0/.hydra/config.yaml", "0/figures/x.png"]),
}


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("around", ["", "train/", "cat/"])
def test_runs_are_never_read(tmp_path, kind, around):
    folder, files = RUNS[kind]
    touch(tmp_path, "cat/1.jpg", "train/2.jpg", *(f"{around}{folder}/{file}" for file in files))
    listing = list_images(tmp_path)
    assert images(tmp_path) == ["cat/1.jpg", "train/2.jpg"]
    assert listing.runs == [f"{around}{folder.partition('/')[0]}"]  # `logs` holds nothing else
    assert sorted(listing.images) == ["", "cat", "train"]


def test_a_folder_around_runs_is_read_if_it_holds_images_too(tmp_path):
    touch(tmp_path, "cat/1.jpg", "logs/2.jpg", "logs/run/.hydra/config.yaml", "logs/run/x.png")
    assert images(tmp_path) == ["cat/1.jpg", "logs/2.jpg"]
    assert list_images(tmp_path).runs == ["logs/run"]


def test_results_json_alone_does_not_make_a_run(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/results.json")
    assert images(tmp_path) == ["a/1.jpg"]


def test_the_folder_of_a_run_is_no_folder_of_images(tmp_path):
    touch(tmp_path, "results.json", "config.yaml", "figures/x.png")
    with pytest.raises(ValueError, match=r"is the folder of a run \(it holds .*\), and its pictures are no images"):
        list_images(tmp_path)


def test_system_files_are_passed_over(tmp_path):
    folders = ("@eaDir", "lost+found", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints")
    touch(tmp_path, "a/1.jpg", "a/._1.jpg", "a/.DS_Store", "a/Thumbs.db", "a/desktop.ini", ".cache/1.jpg")
    touch(tmp_path, *(f"{place}{name}/1.jpg" for name in (*folders, ".Trash-1000") for place in ("", "a/")))
    listing = list_images(tmp_path)
    assert listing.images == {"": [], "a": ["1.jpg"]}
    assert listing.others == {}
    assert listing.skipped == []


def test_endings_in_upper_and_lower_case(tmp_path):
    read = "a.jpg b.JPEG c.jfif d.avif e.JP2 f.ppm g.pgm h.Tif i.webp"
    touch(tmp_path, *read.split(), "j.heic", "k.HEIC", "l.tar.gz", "README", "m.jpg.part", "jpg")
    assert images(tmp_path) == sorted(read.split())
    assert list_images(tmp_path).others == {"": {".heic": 2, ".gz": 1, "": 2, ".part": 1}}


def test_every_ending_belongs_to_a_format_that_is_decoded():
    formats = Image.registered_extensions()
    assert {ending for ending in EXTENSIONS if formats.get(ending) not in FORMATS} == set()


@pytest.mark.fault(
    "folder of images: links that lead nowhere or in a circle, pipes and devices with names of images",
    "left out, and a line counts and names them",
)
def test_links_are_followed_and_what_leads_nowhere_is_named(tmp_path):
    root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    touch(root, "a/1.jpg")
    touch(elsewhere, "2.jpg", "deep/3.jpg")
    (root / "b").symlink_to(elsewhere)
    (root / "c.jpg").symlink_to(elsewhere / "2.jpg")
    (root / "broken.jpg").symlink_to(elsewhere / "gone.jpg")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    (root / "a" / "up").symlink_to(root)
    (elsewhere / "deep" / "again").symlink_to(elsewhere)
    os.mkfifo(root / "pipe.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    assert images(root) == ["a/1.jpg", "b/2.jpg", "b/deep/3.jpg", "c.jpg"]
    assert sorted(list_images(root).skipped) == [
        ("a/up", "a link to a folder that holds it"),
        ("b/deep/again", "a link to a folder that holds it"),
        ("broken.jpg", "a link that leads nowhere"),
        ("device.jpg", "a pipe, socket or device"),
        ("itself.jpg", "a link that leads nowhere: Too many levels of symbolic links"),
        ("pipe.jpg", "a pipe, socket or device"),
    ]


@pytest.mark.fault(
    "folder of images: a part of it may not be opened", "left out, and a line names it; refused if it is all"
)
def test_a_folder_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "secret/2.jpg")
    scandir = os.scandir

    def guarded(path):  # the tests may run as root, whom no permission stops
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    closed = "secret"
    assert images(tmp_path) == ["a/1.jpg"]
    assert list_images(tmp_path).skipped == [("secret/", "cannot be opened: Permission denied")]
    closed = f"{tmp_path.name}/"
    with pytest.raises(ValueError, match="cannot be opened: Permission denied"):
        list_images(tmp_path)


def test_folders_deeper_than_python_recurses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("1.jpg").touch()
        os.chdir(tmp_path)
        assert images(Path()) == ["d/" * 1100 + "1.jpg"]
    finally:  # pytest cannot remove them later: it recurses
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_names_that_are_not_utf8_or_hold_control_characters(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.jpg")).touch()
    (tmp_path / "a\nb.jpg").touch()
    assert images(tmp_path) == ["a\nb.jpg", "\udcff.jpg"]
    assert [shown(name) for name in images(tmp_path)] == [r"a\nb.jpg", r"\udcff.jpg"]
