from __future__ import annotations

import numpy as np
import pytest
import torch

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import Features
from esvit_pl.visualize import MatchedViews, draw_correspondence, matched_views, nearest_regions
from esvit_pl.visualize.figures.correspondence import KINDS, kinds_of

TRANSFORM = EvaluationTransform(Recipe(global_size=32, eval_resize=32, eval_crop=32, mean=(0.5,) * 3, std=(0.5,) * 3))


def by_colour(x):
    """Regions of 4 px that tell their mean colour; the global feature is that of the brightest region."""
    small = torch.nn.functional.avg_pool2d(x, 4).flatten(2).mT
    regions = torch.cat([small, torch.ones_like(small[..., :1]) * 0.2], -1)
    brightest = small.sum(-1).argmax(1)
    return Features(regions[torch.arange(len(x)), brightest], regions, (x.shape[-2] // 4, x.shape[-1] // 4))


def spots(place, size=64):
    """A grey picture with a red spot, at (row, column) of cells of 8 pixels."""
    image = torch.full((3, size, size), 100, dtype=torch.uint8)
    row, column = (8 * each for each in place)
    image[0, row : row + 8, column : column + 8] = 255
    image[1:, row : row + 8, column : column + 8] = 0
    return image


def test_two_pictures_are_matched_by_what_they_show():
    """64 px become 32 for the network, so the spot of 8 px is one region of 4; and 224 to look at, 7 for each of 32."""
    matched = matched_views(by_colour, spots((1, 6)), spots((5, 2)), transform=TRANSFORM, k=64)
    pairs = dict(zip(map(tuple, matched.starts.tolist()), matched.ends.tolist(), strict=True))
    assert pairs[7 * 26.0, 7 * 6.0] == [7 * 10.0, 7 * 22.0]
    assert matched.steps is None
    assert kinds_of(matched) == ["unknown"] * 64
    assert sorted(matched.cosines, reverse=True) == matched.cosines.tolist()
    assert [tuple(view.shape) for view in matched.views] == [(3, 224, 224)] * 2


def test_two_views_of_one_picture_tell_right_from_wrong():
    noise = torch.randint(0, 255, (3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    image = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)
    same = matched_views(by_colour, image, transform=TRANSFORM, same_box=True, color=False, k=64)
    assert (same.steps == 0).sum() > 40
    nothing = matched_views(lambda x: by_colour(torch.zeros_like(x)), image, transform=TRANSFORM, k=64)
    assert (nothing.steps == 0).sum() < 6
    again = matched_views(by_colour, image, transform=TRANSFORM, same_box=True, color=False, k=64)
    assert np.array_equal(again.ends, same.ends)
    assert len(matched_views(by_colour, image, transform=TRANSFORM, k=3).starts) == 3


def test_the_global_features_regions_are_marked_in_both_views():
    matched = matched_views(by_colour, spots((1, 6)), spots((5, 2)), transform=TRANSFORM)
    own, others = matched.likest[0]
    assert own.tolist() != [7 * 26.0, 7 * 6.0]  # grey is brighter than red
    assert own.tolist() == others.tolist()


def test_right_and_wrong_pairs_differ_in_colour_and_line():
    views = (torch.rand(3, 32, 32), torch.rand(3, 32, 48))
    matched = MatchedViews(
        views, np.array([[4.0, 4], [8, 8], [12, 12], [16, 16]]), np.array([[2.0, 2], [6, 6], [8, 8], [9, 9]]),
        np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 1, 3, -1]), np.zeros((2, 2, 2)),
    )  # fmt: skip
    assert kinds_of(matched) == ["right", "one region away", "wrong", "wrong"]
    figure = draw_correspondence(matched, title="a title")
    axes = figure.axes[0]
    lines = [(line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_color() != "white"]
    assert lines[:4] == [KINDS["wrong"], KINDS["wrong"], KINDS["one region away"], KINDS["right"]]
    assert [text.get_text() for text in axes.texts] == ["4", "4", "3", "3", "2", "2", "1", "1"]
    assert axes.texts[-1].get_position()[0] > 32  # in the second view
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["right (1)", "one region away (1)", "wrong (2)"]


def test_the_nearest_regions_of_other_images():
    blue = spots((7, 3)).clone()
    blue[2] += (blue[0] == 255).byte() * 40  # a little less like a red spot
    grey = TRANSFORM(torch.full((3, 64, 64), 100).byte())
    batches = [{"image": torch.stack([TRANSFORM(blue), grey])}, {"image": TRANSFORM(spots((0, 0)))[None]}]
    found = nearest_regions(by_colour, TRANSFORM(spots((4, 4))), (18, 18), batches, k=2)
    assert [(near.image, near.cell) for near in found] == [(2, (0, 0)), (0, (7, 3))]
    assert found[0].cosine == pytest.approx(1, abs=1e-4)
