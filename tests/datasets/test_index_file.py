"""A list that is kept is never wrong: whatever happens to the folder or to the file, the images are those of now."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from esvit_pl.datasets import folder, index_file
from esvit_pl.datasets.names import Names

SHAPES = {
    "classes": ["cat/1.jpg", "cat/z.jpg", "cat/more/2.jpg", "cat!/0.jpg", "dog/3.jpg", "dog/a.txt", "b/1.png"],
    "flat": ["2024/may/1.jpg", "2024/may.jpg", "2024/1.jpg", "b.jpg", "2024-/x.jpg"],
    "splits": ["train/cat/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg", "test/4.jpg", "cover.jpg"],
    "odd names": [f"{name}/{name}.jpg" for name in ("a\nb", "\udcff", "\u00fc", "u\u0308", " ")],
}


@pytest.fixture(autouse=True)
def _keep_every_list(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_file, "MANY", 1)
    monkeypatch.setattr(index_file, "SETTLED", -(10**18))  # files made a moment ago


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def everything(splits) -> list[object]:
    parts = [splits.train, splits.bank, splits.query, *([splits.val] if splits.val else [])]
    images = [([part.name(i) for i in range(len(part))], part.labels, part.digest()) for part in parts]
    paths = [splits.train.path(i) for i in range(len(splits.train))]
    return [images, paths, splits.classes, splits.describe(), splits.has_labels]


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "esvit_pl" / "listings").glob("*.index"))


def is_read(root: Path, monkeypatch, **settings) -> bool:
    """Whether the folders are listed, and not an index used."""
    listed, read = [], index_file.read_folders
    monkeypatch.setattr(index_file, "read_folders", lambda listing: listed.append(1) or read(listing))
    folder(root, **settings)
    monkeypatch.setattr(index_file, "read_folders", read)
    return bool(listed)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_index_gives_what_the_folder_gives(tmp_path, monkeypatch, shape):
    root = touch(tmp_path / "photos", *SHAPES[shape])
    fresh = everything(folder(root, index="none"))
    assert kept(tmp_path) == []
    assert everything(folder(root)) == fresh
    assert len(kept(tmp_path)) == 1
    assert not is_read(root, monkeypatch)
    assert everything(folder(root)) == fresh
    monkeypatch.chdir(tmp_path)  # paths follow the folder as it is given now
    assert folder("photos").train.path(0).startswith("photos/")


def test_the_digest_is_that_of_old_checkpoints(tmp_path):
    images = folder(touch(tmp_path / "photos", *SHAPES["odd names"])).train
    digest = blake2b(digest_size=8)
    for index in range(len(images)):
        digest.update(images.name(index).encode("utf-8", "surrogateescape") + b"\0")
    assert images.digest() == digest.hexdigest()


CHANGES = {
    "a file more": lambda root: touch(root, "cat/2.jpg"),
    "a file less": lambda root: (root / "cat/z.jpg").unlink(),
    "another name": lambda root: (root / "cat/z.jpg").rename(root / "cat/y.jpg"),
    "moved": lambda root: (root / "cat/z.jpg").rename(root / "dog/z.jpg"),
    "a class more": lambda root: touch(root, "fish/1.jpg"),
    "a class of another name": lambda root: (root / "dog").rename(root / "wolf"),
    "deep down": lambda root: touch(root, "cat/more/5.jpg"),
    "a folder's old time put back": lambda root: (
        touch(root, "cat/2.jpg"),
        os.utime(root / "cat", ns=(0, 10**18)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(tmp_path, change):
    root = touch(tmp_path / "photos", *SHAPES["classes"])
    os.utime(root / "cat", ns=(0, 10**18))
    before = everything(folder(root))
    time.sleep(0.02)  # a tick of the file system's clock
    CHANGES[change](root)
    after = everything(folder(root))
    assert after == everything(folder(root, index="none"))
    assert after != before
    assert len(kept(tmp_path)) == 2


def test_settings_of_the_layout_have_lists_of_their_own(tmp_path):
    root = touch(tmp_path / "photos", *SHAPES["classes"])
    for settings in ({}, {"layout": "flat"}, {"labels": "none"}, {}):
        assert everything(folder(root, **settings)) == everything(folder(root, index="none", **settings))
    assert len(kept(tmp_path)) == 3


def test_rebuilt_by_a_word_and_by_one_rank(tmp_path, monkeypatch):
    root = touch(tmp_path / "photos", *SHAPES["classes"])
    folder(root)
    assert is_read(root, monkeypatch, index="rebuild")
    assert not is_read(root, monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_read(root, monkeypatch, index="rebuild")
    for _ in range(5):
        monkeypatch.setenv("LOCAL_RANK", "0")
        folder(root, index="rebuild")
    assert len(kept(tmp_path)) == index_file.STATES
    with pytest.raises(ValueError, match="index must be 'auto', 'rebuild' or 'none', got 'yes'"):
        folder(root, index="yes")


def test_small_folders_need_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(index_file, "MANY", 50)
    folder(touch(tmp_path / "photos", *SHAPES["classes"]))
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_changed_a_moment_ago_is_not_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(index_file, "SETTLED", 2 * 10**9)
    folder(touch(tmp_path / "photos", *SHAPES["classes"]))
    assert kept(tmp_path) == []


@pytest.mark.fault(
    "kept list of images: no place for it (no space, read-only)", "a line, and every process lists for itself"
)
def test_without_a_place_for_the_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").touch()
    root = touch(tmp_path / "photos", *SHAPES["splits"])
    assert everything(folder(root)) == everything(folder(root, index="none"))
    assert "cannot be kept in" in capsys.readouterr().out


DAMAGE = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "text": lambda content: b"<html>not found</html>" * 99,
    "a pickle": lambda content: pickle.dumps(Path("x")),
    "a huge header": lambda content: b"\xff" * 8 + content[8:],
    **{f"a bit in {part}": part for part in ("head", "middle", "end")},
}


@pytest.mark.fault(
    "kept list of images: damaged, cut short or another file", "it is passed over, and the folder is listed again"
)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_never_believed(tmp_path, damage):
    root = touch(tmp_path / "photos", *SHAPES["classes"])
    fresh = everything(folder(root))
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    if callable(DAMAGE[damage]):
        path.write_bytes(DAMAGE[damage](content))
        assert everything(folder(root)) == fresh
        return
    size = len(content)
    places = {"head": range(8, 900, 31), "middle": range(900, size, 71), "end": range(size - 40, size)}[DAMAGE[damage]]
    for place in places:
        for other in kept(tmp_path):
            other.unlink()
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert everything(folder(root)) == fresh, place


def forged(path: Path, **changed) -> None:
    """An index of the same folder with other content, and with the digest of that."""
    arrays = load_file(path)
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["esvit_pl"])
    if "names" in changed:
        names = Names.of(changed.pop("names"))
        changed |= {"train.names": names.block, "train.ends": names.ends}
    about |= changed.pop("about", {})
    arrays |= changed
    del about["digest"]
    about["digest"] = index_file.content_digest(arrays, about)
    save_file(arrays, path, {"esvit_pl": json.dumps(about)})


TWO = ["a/1.jpg", "b/2.jpg"]
FORGED = {
    "an absolute name": {"names": ["/etc/passwd", "b/2.jpg"]},
    "a name above": {"names": ["a/1.jpg", "../b.jpg"]},
    "a name above, inside": {"names": ["a/../../b.jpg", "b/2.jpg"]},
    "a name above, at the end": {"names": ["a/1.jpg", "b/.."]},
    "two dots": {"names": ["..", "b/2.jpg"]},
    "an empty name": {"names": ["", "b/2.jpg"]},
    "fewer names than labels": {"names": ["a/1.jpg"]},
    "a null byte": {"names": ["a\0/1.jpg", "b/2.jpg"]},
    "a root above": {"about": {"roots": {"train": ".."}}},
    "an absolute root": {"about": {"roots": {"train": "/etc"}}},
    "no root": {"about": {"roots": {}}},
    "a label without a class": {"train.labels": np.array([0, 2])},
    "a negative label": {"train.labels": np.array([0, -1])},
    "labels of another kind": {"train.labels": np.array([0.0, 1.0])},
    "no classes": {"about": {"classes": None}},
    "ends beyond": {"train.ends": np.array([8, 99])},
    "ends that go back": {"train.ends": np.array([16, 8])},
    "ends that overflow": {"train.ends": np.array([-(2**63), 16])},
    "another kind of ends": {"train.ends": np.array([8.0, 16.0])},
    "no folders": {"folders": np.zeros(0, np.uint8), "times": np.zeros((0, 2), np.int64)},
}


@pytest.mark.fault("kept list of images: forged", "it is passed over, and the folder is listed again")
@pytest.mark.parametrize("forgery", [None, *FORGED])
def test_a_forged_file_is_not_used(tmp_path, monkeypatch, forgery):
    root = touch(tmp_path / "photos", *TWO)
    folder(root)
    (path,) = kept(tmp_path)
    forged(path, **FORGED.get(forgery, {}))
    assert is_read(root, monkeypatch) == (forgery is not None)  # the same content is as good as it was


def test_a_file_of_another_user_is_not_used(tmp_path, monkeypatch):
    root = touch(tmp_path / "photos", *TWO)
    folder(root)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert is_read(root, monkeypatch)


def test_a_pickled_data_set_maps_the_file_itself(tmp_path):
    root = touch(tmp_path / "photos", *(f"{c}/{'x' * 100}{i}.jpg" for c in "ab" for i in range(500)))
    folder(root)
    images = folder(root).train
    content = pickle.dumps(images)
    assert len(content) < 10_000 < sum(map(len, images._names))
    copy = pickle.loads(content)
    assert [(copy.path(i), copy.label(i)) for i in range(1000)] == [
        (images.path(i), images.label(i)) for i in range(1000)
    ]
    assert copy.digest() == images.digest()
    assert (copy.places() == images.places()).all()


RANK = """
import os, sys, time
from esvit_pl.datasets import folder, index_file
index_file.MANY, index_file.SETTLED = 1, -(10**18)
scandir = os.scandir
def slow(path):
    with open(sys.argv[2], "a") as log:
        print(os.getpid(), path, file=log)
    time.sleep(0.5)
    return scandir(path)
os.scandir = slow
print(len(folder(sys.argv[1]).train))
"""


@pytest.mark.slow
def test_of_ranks_that_start_together_one_lists(tmp_path):
    root, log = touch(tmp_path / "photos", *SHAPES["classes"]), tmp_path / "log"
    start = [sys.executable, "-c", RANK, str(root), str(log)]
    ranks = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [rank.communicate()[0].split()[-1] for rank in ranks] == ["6"] * 3
    opened = [line.split()[0] for line in log.read_text().splitlines() if "/photos" in line]
    whole = [pid for pid in set(opened) if opened.count(pid) == 6]  # the root and five folders
    assert len(whole) == 1


def test_without_file_locks_folders_are_read_and_no_list_is_kept(tmp_path, monkeypatch):
    root = touch(tmp_path / "photos", *SHAPES["classes"])
    monkeypatch.setattr(index_file, "fcntl", None)
    without = everything(folder(root))
    assert kept(tmp_path) == []
    monkeypatch.undo()
    assert without == everything(folder(root, index="none"))
