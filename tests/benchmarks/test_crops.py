from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from benchmarks import crops
from benchmarks.crops import (
    DECODE,
    DEVICE_COLOR,
    DEVICE_LOADER,
    DEVICE_REDUCED,
    PIL_RECIPE,
    WORKER_COLOR,
    WORKER_REDUCED,
    PILViews,
    crop_rates,
)
from esvit_pl.augment import Recipe, draw, make_views
from esvit_pl.profiling.photographs import photograph

WHOLE = {"global_scale": (1.0, 1.0), "local_scale": (1.0, 1.0), "aspect": (1.0, 1.0), "flip": 1.0, "num_local": 1}
PLAIN = {"jitter": 0, "global_blur": [0], "local_blur": 0}
GREY = Recipe(global_size=32, local_size=16, **WHOLE, **PLAIN, grayscale=1, global_solarize=[0, 1])


def test_what_is_compared_is_the_same_recipe(tmp_path):
    (tmp_path / "it.jpg").write_bytes(photograph(0, (48, 48)))
    theirs = PILViews([tmp_path / "it.jpg"], GREY)[0]
    image = torch.from_numpy(np.array(Image.open(tmp_path / "it.jpg"))).permute(2, 0, 1)
    ours = make_views(GREY, image, draw(GREY.views, GREY, (48, 48), seed=0, epoch=0, index=0))
    for one, two in zip(theirs, ours, strict=True):  # Pillow rounds to 1/255; solarising tells 127 from 128
        difference = (one - two).abs()
        assert difference.median() < 1 / 255 / min(GREY.std)
        assert (difference > 2 / 255 / min(GREY.std)).float().mean() < 0.02


SMALL = Recipe(global_size=8, local_size=4)
WAYS = [DECODE, PIL_RECIPE, WORKER_COLOR, WORKER_REDUCED, DEVICE_LOADER, DEVICE_REDUCED, DEVICE_COLOR]


def test_rates_are_medians_and_ratios_are_taken_within_a_repeat(monkeypatch):
    """By hand: passes over 4 images; the first of each way warms up."""
    taken = dict.fromkeys(WAYS, (9.0, 1.0, 1.0, 1.0))
    taken[PIL_RECIPE] = (9.0, 1.0, 2.0, 8.0)
    taken[DEVICE_COLOR] = (0.1, 2.0, 1.0, 2.0)  # ratios 0.5, 2, 4
    clock = iter([taken[way][turn] for turn in range(4) for way in WAYS])
    monkeypatch.setattr(crops, "seconds", lambda run, device: next(clock))
    rows = list(crop_rates(SMALL, image_sizes=[(16, 20)], images=[4], batch_size=2, repeats=3))
    assert [row.way for row in rows] == WAYS
    assert {row.image for row in rows} == {"20 x 16"}
    assert rows[-1] == ("20 x 16", DEVICE_COLOR, 2.0, 2.0)
    assert rows[1] == ("20 x 16", PIL_RECIPE, 2.0, 1.0)


def test_every_way_reads_every_image_in_every_repeat(monkeypatch):
    opened, read = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, *args, **how: opened.append(Path(path).name) or read(path, *args, **how)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settings = {"image_sizes": [(16, 20), (32, 20)], "images": [4, 2], "batch_size": 2, "repeats": 2}
        rows = list(crop_rates(SMALL, **settings))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [(row.image, row.way) for row in rows] == [(size, way) for size in ("20 x 16", "20 x 32") for way in WAYS]
    assert all(row.images_per_second > 0 and row.ratio > 0 for row in rows)
    # Repeats, with one to warm up, of all ways. Reduced decoding opens a file for its size, and again for its pixels.
    each = 3 * (len(WAYS) + 2)
    assert Counter(opened) == {"0.jpg": 2 * each, "1.jpg": 2 * each, "2.jpg": each, "3.jpg": each}


def test_reduced_ways_read_large_images_at_a_smaller_scale(monkeypatch):
    scales, draft = [], JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *args: scales.append(args[1]) or draft(self, *args))
    list(crop_rates(SMALL, image_sizes=[(160, 200)], images=[2], batch_size=2, repeats=1))
    assert len(scales) == 2 * 2 * 2  # ways, images, passes
    assert all(width in (25, 50, 100) for width, _ in scales)


@pytest.mark.parametrize(("images", "sizes"), [([5], [(16, 20)]), ([0], [(16, 20)]), ([4, 4], [(16, 20)])])
def test_batches_must_be_whole(images, sizes):
    with pytest.raises(ValueError, match=r"images needs a multiple of batch_size 2 for each of the 1 image sizes, got"):
        list(crop_rates(SMALL, image_sizes=sizes, images=images, batch_size=2))
