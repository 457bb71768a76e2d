from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from esvit_pl.datasets import FREE_TO_SHOW, photograph_windows, photographs
from esvit_pl.datasets.photographs import PATCH, PHOTOGRAPHS, TILE, _patches, _windows

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


def test_train_and_test_patches_share_no_pixel():
    noise = np.random.default_rng(0).integers(0, 255, (260, 330), dtype=np.uint8)
    seen = {}
    for part in ("train", "test"):
        picture, boxes = Image.fromarray(noise), []
        cut = picture.crop
        picture.crop = lambda box, cut=cut, boxes=boxes: boxes.append(box) or cut(box)
        assert len(list(_patches(picture, part, 200, np.random.default_rng(1)))) == 200
        seen[part] = np.zeros(noise.shape, dtype=bool)
        for left, top, right, bottom in boxes:
            assert (right - left, bottom - top) == (PATCH, PATCH)
            assert left // TILE == (right - 1) // TILE
            assert top // TILE == (bottom - 1) // TILE
            seen[part][top:bottom, left:right] = True
    assert not (seen["train"] & seen["test"]).any()
    assert seen["test"][8:56, 8:56].all()  # tile (0, 0) is a test tile
    assert not seen["test"][:64, 64:128].any()  # and (0, 1) is none


def test_the_whole_data_set():
    splits = photographs()
    assert len(splits.classes) == 19
    assert set(splits.classes) == set(PHOTOGRAPHS)
    counts = torch.tensor(splits.train.labels).bincount()
    assert (counts == 250).sum() == 18  # cell is mostly empty
    assert 100 < counts[splits.classes.index("cell")] < 250
    assert torch.tensor(splits.query.labels).bincount().tolist() == [60] * 19
    image, label = splits.train[300]
    assert image.shape == (3, 32, 32)
    assert torch.equal(image[0], image[2])
    patches = torch.stack([splits.train[i][0] for i in range(0, len(splits.train), 7)]).float()
    assert (patches.mean((1, 2, 3)) - 127.5).abs().max() < 4  # a little off where values were clipped
    assert (patches.std((1, 2, 3)) - 40).abs().median() < 1
    assert splits.train.name(300).split("/")[:2] == [splits.classes[label], "train"]
    tiles = [splits.query.name(i).split("/")[2] for i in range(len(splits.query.labels))]
    assert all((int(row) + 2 * int(column)) % 4 == 0 for row, column in (tile.split("-") for tile in tiles))


def test_the_same_seed_gives_the_same_patches():
    first, again, other = (photographs(train_patches=2, test_patches=1, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first.train[i][0], again.train[i][0]) for i in range(38))
    assert not all(torch.equal(first.train[i][0], other.train[i][0]) for i in range(38))


def test_halves_share_no_photograph_and_leave_the_patches_as_they_are():
    few = {"train_patches": 2, "test_patches": 1}
    whole, first, second = (photographs(**few, half=half) for half in (None, "first", "second"))
    assert sorted([*first.classes, *second.classes]) == sorted(whole.classes)
    patches = {whole.train.name(i): whole.train[i][0] for i in range(len(whole.train))}
    for half in (first, second):
        assert all(torch.equal(half.train[i][0], patches[half.train.name(i)]) for i in range(len(half.train)))
    with pytest.raises(ValueError, match="half must be 'first', 'second' or None, got 'third'"):
        photographs(half="third")


def test_what_may_be_shown_is_part_of_the_data():
    assert set(PHOTOGRAPHS) - FREE_TO_SHOW == {"moon", "page", "motorcycle", "china", "flower"}


def test_bad_input(monkeypatch):
    with pytest.raises(ValueError, match="test_patches must be 1 or more, got 0"):
        photographs(test_patches=0)
    monkeypatch.setattr(sys.modules["esvit_pl.datasets.photographs"], "find_spec", lambda package: None)
    with pytest.raises(ValueError, match="need the package scikit-image: pip install scikit-image"):
        photographs(seed=1234)  # whose patches nobody has cut before in this process


@pytest.mark.parametrize("shape", [(110, 400), (400, 110)], ids=["wide", "tall"])
def test_training_and_test_windows_share_no_pixel(shape):
    noise = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    seen = {}
    for part in ("train", "test"):
        seen[part] = np.zeros(shape, dtype=bool)
        for side in (PATCH, 2 * PATCH):
            picture, boxes = Image.fromarray(noise), []
            cut = picture.crop
            picture.crop = lambda box, cut=cut, boxes=boxes: boxes.append(box) or cut(box)
            found = list(_windows(picture, part, 60, np.random.default_rng(1), side))
            assert {patch.shape for _, patch in found} == {(side * 2 // 3, side * 2 // 3)}
            assert len(found) == 60
            for left, top, right, bottom in boxes:
                assert (right - left, bottom - top) == (side, side)
                assert min(left, top) >= 0
                assert bottom <= shape[0]
                assert right <= shape[1]
                seen[part][top:bottom, left:right] = True
    assert not (seen["train"] & seen["test"]).any()
    along = seen["train"].any(axis=int(shape[0] > shape[1]))
    assert not along[288:].any()  # 72 % of the longer side
    assert along[:288].mean() > 0.9


def test_pretraining_sees_windows_and_evaluations_patches():
    splits = photograph_windows(train_windows=3, test_windows=2)
    assert tuple(splits.seen[0][0].shape) == tuple(splits.paired[0][0].shape) == (3, 64, 64)
    assert tuple(splits.bank[0][0].shape) == tuple(splits.query[0][0].shape) == (3, 32, 32)
    assert len(set(splits.query.labels)) >= 17  # in "cell" and "moon" that part is nearly empty
    assert splits.query.name(0).startswith("astronaut/test/")
    again, other = (photograph_windows(train_windows=3, test_windows=2, seed=seed) for seed in (0, 1))
    assert torch.equal(again.seen[4][0], splits.seen[4][0])
    assert not torch.equal(other.seen[4][0], splits.seen[4][0])
    with pytest.raises(ValueError, match="test_windows must be 1 or more, got 0"):
        photograph_windows(test_windows=0)
