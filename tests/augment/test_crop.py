from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from esvit_pl.augment import crop_resize, random_box
from esvit_pl.augment.crop import TRIES, absolute, relative

ASPECT = (3 / 4, 4 / 3)


def uniforms(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(2 * TRIES + 2)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("box", [(0, 0, 80, 60), (7, 11, 40, 37), (3, 2, 9, 13), (5, 5, 32, 32)])
def test_crop_resize_is_torchvision_to_the_last_bit(image, box):
    x, y, w, h = box
    expected = TF.resized_crop(image, y, x, h, w, [32, 32], InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(crop_resize(image, box, 32), expected)
    assert torch.equal(crop_resize(image, box, 32, flip=True), expected.flip(-1))
    assert torch.equal(crop_resize(image.contiguous(), box, 32), expected)


def test_a_box_by_hand():
    numbers = np.full(2 * TRIES + 2, 0.5)
    # half way between 0.2 and 0.6 is an area of 0.4 * 10,000 = 4,000; the middle aspect is 1: a side of sqrt(4000) = 63
    assert random_box(numbers, (100, 100), (0.2, 0.6), (0.5, 2.0)) == (int(0.5 * 38), int(0.5 * 38), 63, 63)


def test_a_box_that_does_not_fit_is_tried_again():
    numbers = np.array([1.0, 1.0] + [0.0, 0.5] * (TRIES - 1) + [0.0, 0.999])
    # first try: the whole area at aspect 2 is wider than the image; second: area 0.25, aspect 1
    assert random_box(numbers, (100, 100), (0.25, 1.0), (0.5, 2.0)) == (50, 0, 50, 50)


def test_fallback_is_the_largest_central_box_of_an_allowed_aspect():
    full = np.ones(2 * TRIES + 2) * 0.999
    assert random_box(full, (30, 300), (1.0, 1.0), ASPECT) == (130, 0, 40, 30)
    assert random_box(full, (300, 30), (1.0, 1.0), ASPECT) == (0, 130, 30, 40)
    assert random_box(full, (100, 100), (1.0, 1.0), (1.2, 1.3)) == (0, 8, 100, 83)


def test_areas_and_aspects_are_spread_as_asked():
    boxes = np.array([random_box(uniforms(seed), (400, 600), (0.05, 0.4), ASPECT) for seed in range(2000)])
    x, y, w, h = boxes.T
    area, aspect = w * h / (400 * 600), w / h
    assert 0.049 < area.min() < 0.055
    assert 0.395 < area.max() < 0.405
    assert abs(area.mean() - 0.225) < 0.01
    assert abs(np.log(aspect).mean()) < 0.01
    assert 0.74 < aspect.min() < 0.77
    assert x.min() == y.min() == 0
    assert (x + w).max() == 600
    assert (y + h).max() == 400
    assert abs((x / (600 - w)).mean() - 0.5) < 0.02


def test_a_single_pixel_has_a_box():
    assert random_box(uniforms(0), (1, 1), (0.05, 0.4), ASPECT) == (0, 0, 1, 1)


def test_relative_boxes_give_the_pixels_back_from_float32():
    for seed in range(200):
        size = (1 + seed * 37 % 5000, 1 + seed * 911 % 7000)
        box = random_box(uniforms(seed), size, (0.08, 1.0), ASPECT)
        assert absolute(torch.tensor(relative(box, size)).tolist(), size) == box
        assert math.isclose(relative(box, size)[2], box[2] / size[1])


def test_in_a_smaller_image_edges_lie_at_the_nearest_pixel():
    box = relative((25, 12, 55, 30), (100, 100))
    assert absolute(box, (50, 50)) == (12, 6, 28, 15)  # 12.5 to 40 of 50: halves go to the even number
    assert absolute(box, (13, 13)) == (3, 2, 7, 3)  # 3.25 to 10.4, 1.56 to 5.46
    # x and width of a box at the right edge, both rounded up, would end beside the image
    assert absolute(relative((7, 0, 11, 18), (18, 18)), (9, 9)) == (4, 0, 5, 9)
    for seed in range(200):
        size, small = (30 + seed * 37 % 500, 30 + seed * 91 % 700), (1 + seed % 29, 1 + seed % 23)
        x, y, w, h = absolute(relative(random_box(uniforms(seed), size, (0.08, 1.0), ASPECT), size), small)
        assert 0 <= x <= x + w <= small[1]
        assert 0 <= y <= y + h <= small[0]
