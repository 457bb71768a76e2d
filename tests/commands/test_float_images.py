"""Floats that only a setting explains, from the command line to the backbone that comes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import esvit_pl


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    root = tmp_path_factory.mktemp("floats")
    for number in range(24):
        values = np.random.default_rng(number).random((40, 40)).astype(np.float32)
        Image.fromarray(values * 4000).save(root / f"{number:02d}.tif")
    return root


def test_without_the_setting_the_run_says_which_one_it_needs(commands, floats):
    outcome = commands.pretrain(floats)
    assert outcome.code == 1
    assert "floats of 32 bits from" in outcome.err
    assert "set dataset.value_range=[lo,hi]" in outcome.err


def test_with_the_setting_training_and_the_backbones_transform_see_the_same_pixels(commands, floats):
    outcome = commands.pretrain(floats, "dataset.value_range=[0,4000]")
    assert outcome.code == 0, outcome.err
    transform = esvit_pl.load_backbone(outcome.last).transform
    decoded, _ = esvit_pl.datasets.folder(floats, value_range=[0, 4000]).train[3]
    assert decoded.float().std() > 60  # neither black nor white
    with Image.open(floats / "03.tif") as image:
        assert torch.equal(transform(image), transform(decoded))
