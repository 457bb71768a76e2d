from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from esvit_pl.augment import Recipe, evaluation_view


@pytest.mark.parametrize("size", [(60, 80), (81, 53), (32, 32), (40, 40), (20, 31)])
def test_evaluation_is_torchvisions_resize_crop_normalize(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(eval_resize=40, eval_crop=33)
    expected = TF.center_crop(TF.resize(image, [40], InterpolationMode.BICUBIC, antialias=True), [33, 33]) / 255
    assert torch.equal(evaluation_view(recipe, image, normalized=False), expected)
    expected = TF.normalize(expected, list(recipe.mean), list(recipe.std))
    torch.testing.assert_close(evaluation_view(recipe, image), expected, atol=1e-6, rtol=1e-6)


def test_image_takes_mean_and_deviation_from_the_whole_image():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 100  # half 0, half 100: mean 50, deviation 50
    view = evaluation_view(Recipe(eval_resize=8, eval_crop=2, normalize="image"), image)
    torch.testing.assert_close(view, torch.tensor([1.0, -1.0]).expand(3, 2, 2))


def test_view_takes_them_from_the_view_and_a_uniform_one_stays_finite():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, :2] = 255  # outside the central crop
    view = evaluation_view(Recipe(eval_resize=8, eval_crop=4, normalize="view"), image)
    assert torch.equal(view, torch.zeros(3, 4, 4))


@pytest.mark.parametrize("normalize", ["dataset", "image", "view"])
def test_one_mean_makes_the_grey_view(normalize):
    image = torch.tensor([100, 200, 50], dtype=torch.uint8)[:, None, None].repeat(1, 4, 4)
    image[:, :, ::2] = 0  # black columns between columns of luma 0.2989 * 100 + 0.587 * 200 + 0.114 * 50
    recipe = Recipe(eval_resize=4, eval_crop=4, mean=[0.25], std=[0.5], normalize=normalize)
    bright = (29.89 + 117.4 + 5.7) / 255
    view = evaluation_view(recipe, image, normalized=False)
    torch.testing.assert_close(view, torch.tensor([0.0, bright] * 2).expand(1, 4, 4))
    low, high = ((0.0 - 0.25) / 0.5, (bright - 0.25) / 0.5) if normalize == "dataset" else (-1.0, 1.0)
    torch.testing.assert_close(evaluation_view(recipe, image), torch.tensor([low, high] * 2).expand(1, 4, 4))


@pytest.mark.parametrize("long_side", [1, 2])
def test_a_very_long_image_gives_its_middle_without_being_resized_as_a_whole(long_side):
    shape = [3, 1, 1]
    shape[long_side] = 200_000  # 256 times as long it would be 39 GB
    image = torch.zeros(shape, dtype=torch.uint8)
    image.narrow(long_side, 100_000, 100_000).fill_(255)
    view = evaluation_view(Recipe(), image, normalized=False)
    halves = view.narrow(long_side, 0, 100), view.narrow(long_side, 124, 100)
    assert [half.mean().item() for half in halves] == pytest.approx([0, 1], abs=0.25)
