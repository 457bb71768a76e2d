from __future__ import annotations

import numpy as np
import pytest
import torch

from esvit_pl.augment import Recipe
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Mosaics, Splits, photograph_mosaics, photographs

PATCHES = ArrayDataset(
    torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 4, 4), [f"patch {i}" for i in range(7)]
)


def test_a_mosaic_shows_its_parts_where_it_says():
    mosaics = Mosaics(PATCHES, side=3, seed=1)
    for index in range(len(mosaics)):
        image, label = mosaics[index]
        assert label is None
        assert tuple(image.shape) == (3, 12, 12)
        assert np.array_equal(image[0, ::4, ::4].numpy(), mosaics.parts(index))
        assert index in mosaics.parts(index)
    assert mosaics.name(2) == "mosaic/patch 2"


def test_the_same_seed_gives_the_same_mosaics():
    first, again, other = (Mosaics(PATCHES, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first.parts(i), again.parts(i)) for i in range(7))
    assert not all(np.array_equal(first.parts(i), other.parts(i)) for i in range(7))
    with pytest.raises(ValueError, match="a side of 1 image or more, got 0"):
        Mosaics(PATCHES, side=0)


def test_pretraining_sees_mosaics_and_evaluation_single_patches():
    splits = photograph_mosaics(train_patches=3, test_patches=2)
    data = ImageDataModule(splits, Recipe(global_size=32, num_local=0), batch_size=8, num_workers=0)
    patches = photographs(train_patches=3, test_patches=2)
    assert data.train_images is splits.seen
    assert tuple(splits.seen[0][0].shape) == (3, 64, 64)
    assert len(splits.bank) == len(patches.train) == len(splits.seen)
    assert torch.equal(splits.bank[5][0], patches.train[5][0])
    assert splits.query.labels == patches.val.labels
    (pair, *_) = data.pairs_dataloader()
    assert tuple(pair["views"][0].shape) == (8, 3, 32, 32)
    assert len(data.pairs_dataloader().dataset) == len(splits.paired) == len(splits.query)
    supervised = ImageDataModule(splits, Recipe(global_size=32), batch_size=8, num_workers=0, train="supervised")
    assert supervised.train_images is splits.bank


def test_parts_of_held_out_mosaics_are_held_out():
    splits = photograph_mosaics(train_patches=2, test_patches=2)
    held_out = {splits.val[index][0].numpy().tobytes() for index in range(len(splits.val))}
    image, _ = splits.paired[3]
    assert {image[:, r : r + 32, c : c + 32].numpy().tobytes() for r in (0, 32) for c in (0, 32)} <= held_out
    assert Splits(PATCHES, PATCHES).seen is None
