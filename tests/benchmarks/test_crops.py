from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from esvit_pl.augment import Recipe, draw, make_views
from esvit_pl.benchmarks.crops import (
    DECODE,
    DEVICE_CROPS,
    DEVICE_LOADER,
    PIL_RECIPE,
    WORKER_CROPS,
    PILViews,
    crop_rates,
    paired_ratio,
    photograph,
)

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


def test_photographs_are_jpegs_that_the_seed_determines():
    image = Image.open(BytesIO(photograph(3, (30, 40))))
    assert (image.format, image.size, image.mode) == ("JPEG", (40, 30), "RGB")
    assert photograph(3, (30, 40)) == photograph(3, (30, 40)) != photograph(4, (30, 40))
    assert np.asarray(image).std() > 20


def test_the_ratio_is_the_median_of_those_within_a_repeat():
    assert paired_ratio({"one": [2.0, 9.0, 4.0], "two": [1.0, 3.0, 4.0]}, "one", "two") == 2.0


def test_every_way_reads_every_image_in_every_repeat(monkeypatch):
    opened, read = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *args: opened.append(Path(path).name) or read(path, *args))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rates = crop_rates(Recipe(global_size=8, local_size=4), images=4, image_size=(16, 20), batch_size=2, repeats=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert list(rates) == [DECODE, PIL_RECIPE, WORKER_CROPS, DEVICE_LOADER, DEVICE_CROPS]
    assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
    assert Counter(opened) == {f"{number}.jpg": 5 * 3 for number in range(4)}  # ways, and repeats with one to warm up
