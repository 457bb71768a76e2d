from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as TF

from esvit_pl.augment import OFF, ORDERS, PARAMS, apply_color
from esvit_pl.augment.photometric import gaussian_blur, grayscale, jitter, solarize

VALUES = torch.tensor([0.6, 1.0, 1.37, 0.0])  # one for each image; 1 is off for factors
TURNS = torch.tensor([-0.5, 0.0, 0.1, 0.37])


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    batch = torch.rand(4, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    batch[0, :, :4] = batch[0, :1, :4]  # some grey pixels, whose hue is undefined
    batch[0, :, 0], batch[0, :, 1] = 0, 1
    return batch


@pytest.mark.parametrize(("name", "theirs", "values"), [
    ("brightness", TF.adjust_brightness, VALUES),
    ("contrast", TF.adjust_contrast, VALUES),
    ("saturation", TF.adjust_saturation, VALUES),
    ("hue", TF.adjust_hue, TURNS),
])  # fmt: skip
def test_jitter_operations_are_torchvisions(images, name, theirs, values):
    expected = torch.stack([theirs(image, value) for image, value in zip(images, values.tolist(), strict=True)])
    params = torch.tensor(OFF).repeat(len(images), 1)
    params[:, PARAMS.index(name)] = values
    done = apply_color(images, params)
    torch.testing.assert_close(done, expected, atol=1e-5, rtol=0)
    assert not torch.equal(done[0], images[0])
    assert torch.equal(done[1], images[1])  # off: bit for bit


def test_grayscale_and_solarize_are_torchvisions(images):
    on = torch.tensor([1.0, 0.0, 1.0, 0.0])
    grey, inverted = grayscale(images, on), solarize(images, on)
    torch.testing.assert_close(grey[::2], TF.rgb_to_grayscale(images[::2], 3), atol=1e-6, rtol=0)
    assert torch.equal(inverted[::2], TF.solarize(images[::2], 128 / 255))
    assert torch.equal(grey[1::2], images[1::2])
    assert torch.equal(inverted[1::2], images[1::2])


def test_solarize_takes_the_same_pixels_as_pillow():
    ramp = torch.arange(256) / 255
    expected = torch.tensor([value if value < 128 else 255 - value for value in range(256)])
    done = solarize(ramp.expand(1, 3, 1, 256), torch.ones(1))[0, 0, 0] * 255
    assert torch.equal(done.round().long(), expected)


def test_blur_is_torchvisions_with_a_kernel_that_fits_each_sigma(images):
    sigmas = torch.tensor([0.1, 0.0, 0.7, 2.0])
    blurred = gaussian_blur(images, sigmas)
    for image, sigma, result in zip(images, sigmas.tolist(), blurred, strict=True):
        if sigma:
            side = 2 * math.ceil(3 * sigma) + 1
            torch.testing.assert_close(result, TF.gaussian_blur(image, [side, side], [sigma, sigma]), atol=1e-5, rtol=0)
    assert torch.equal(blurred[1], images[1])


def test_blur_is_near_pillows_of_that_radius(images):
    pixels = (images[2] * 255).round().to(torch.uint8)
    pillow = Image.fromarray(pixels.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(1.5))
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
    ours = gaussian_blur(pixels[None] / 255, torch.tensor([1.5]))[0] * 255
    inner = (slice(None), slice(5, -5), slice(5, -5))  # Pillow repeats the border pixel
    assert (ours[inner] - expected[inner]).abs().max() < 4  # Pillow's is three box blurs; noise is the hardest image


def test_blur_of_an_image_smaller_than_its_kernel():
    tiny = torch.rand(1, 3, 2, 1)
    assert gaussian_blur(tiny, torch.tensor([2.0])).shape == tiny.shape


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_each_sample_has_its_own_order(images, order):
    steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    values = torch.tensor([[1.4, 0.6, 1.2, 0.1], [0.7, 1.3, 0.8, -0.1]])
    orders = torch.tensor([order, 5])
    result = jitter(images[:2], *values.unbind(1), orders)
    for image, row, place, got in zip(images, values.tolist(), orders.tolist(), result, strict=False):
        expected = image
        for number in ORDERS[place]:
            expected = steps[number](expected, row[number])
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_orders_are_all_24_and_drawn_by_place():
    assert sorted(ORDERS) == sorted(itertools.permutations(range(4)))


def test_off_is_bit_for_bit_and_on_is_the_recipes_order(images):
    params = torch.tensor([OFF] * 4)
    assert torch.equal(apply_color(images, params), images)
    for name, value in {"brightness": 1.2, "grayscale": 1.0, "blur": 1.0, "solarize": 1.0}.items():
        params[2, PARAMS.index(name)] = value
    result = apply_color(images, params)
    expected = TF.adjust_brightness(images[2], 1.2)
    expected = TF.gaussian_blur(TF.rgb_to_grayscale(expected, 3), [7, 7], [1.0, 1.0])
    torch.testing.assert_close(result[2], TF.solarize(expected, 128 / 255), atol=1e-5, rtol=0)
    assert torch.equal(result[[0, 1, 3]], images[[0, 1, 3]])


def test_a_sample_does_not_depend_on_the_others(images):
    params = torch.tensor([OFF] * 4)
    params[:, :7] = torch.tensor([[1.3, 0.7, 1.1, 0.1, 7, 0, 0.3], [1, 1, 1, 0, 0, 1, 2.0], list(OFF[:7]),
                                  [0.8, 1.2, 0.9, -0.1, 20, 0, 1.1]])  # fmt: skip
    alone = torch.cat([apply_color(images[i : i + 1], params[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(apply_color(images, params), alone, atol=1e-6, rtol=0)
