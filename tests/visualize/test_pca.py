from __future__ import annotations

import numpy as np
import pytest
import torch

from esvit_pl.backbones import Features
from esvit_pl.visualize import draw_pca, film, pca_maps
from esvit_pl.visualize.pca import components, foregrounds, otsu


def as_regions(x):
    return Features(x.mean((2, 3)), x.flatten(2).mT, (x.shape[2], x.shape[3]))


def test_components_are_those_of_the_covariance_with_fixed_signs():
    x = np.random.default_rng(0).normal(size=(50, 6)) ** 3
    found = components(x, 3)
    _, axes = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(0)) @ axes[:, ::-1][:, :3]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    assert ((found**3).sum(0) > 0).all()
    np.testing.assert_allclose(components(x[::-1], 3)[::-1], found, atol=1e-9)


def test_equal_regions_get_equal_colours_in_all_images():
    halves = torch.randn(4, 1, 1).expand(4, 6, 6).clone()
    halves[:, :, 3:] = torch.randn(4, 1, 1)
    swapped = halves.flip(2)
    one, other = pca_maps(as_regions, [halves, swapped])
    np.testing.assert_allclose(one, other[:, ::-1], atol=1e-6)
    assert np.ptp(one[:, :3], axis=(0, 1)).max() < 1e-6
    assert one.min() >= 0
    assert one.max() <= 1


def test_the_foreground_is_what_lies_off_the_border():
    image = torch.zeros(3, 8, 8)
    image[:, 2:6, 2:5] = torch.tensor([2.0, 0.0, 1.0])[:, None, None]
    (mask,) = foregrounds([image.permute(1, 2, 0).numpy()])
    assert mask.sum() == 12
    assert mask[2:6, 2:5].all()
    (turned,) = foregrounds([-image.permute(1, 2, 0).numpy()])
    assert np.array_equal(turned, mask)
    (picture,) = pca_maps(as_regions, [image + 0.01 * torch.randn(3, 8, 8)], foreground=True)
    assert picture[0].max() == 0  # black
    assert picture[3, 3].max() > 0


def test_otsu_by_hand():
    assert otsu(np.array([1.0, 2, 3, 20, 21])) == 11.5


def test_the_figure_has_a_row_for_each_backbone():
    images = [torch.rand(3, 20, 30), torch.rand(3, 30, 20)]
    maps = {"one": [np.zeros((2, 3, 3)), np.zeros((3, 2, 3))], "two": [np.ones((2, 3, 3)), np.ones((3, 2, 3))]}
    figure = draw_pca(images, maps)
    assert len(figure.axes) == 6
    assert figure.axes[2].get_title(loc="left") == "one"
    with pytest.raises(ValueError, match="got 2 images and 1 pictures"):
        draw_pca(images, {"one": maps["one"][:1]})


def test_a_film_shows_its_frames_in_order(tmp_path):
    from PIL import Image

    paths = []
    for number, colour in enumerate(("red", "green", "blue")):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (8, 6), colour).save(paths[-1])
    with Image.open(film(paths, tmp_path / "films" / "run.gif", seconds=0.2)) as gif:
        assert gif.n_frames == 3
        seen = []
        for frame in range(3):
            gif.seek(frame)
            seen.append((gif.convert("RGB").getpixel((3, 3)), gif.info["duration"]))
    assert seen == [((255, 0, 0), 200), ((0, 128, 0), 200), ((0, 0, 255), 800)]
    with pytest.raises(ValueError, match="a frame or more, got none"):
        film([], tmp_path / "a.gif")
    Image.new("RGB", (9, 6)).save(paths[0])
    with pytest.raises(ValueError, match="one size, got 8 x 6, 9 x 6"):
        film(paths, tmp_path / "a.gif")
