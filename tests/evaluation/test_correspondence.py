from __future__ import annotations

import pytest
import torch

from esvit_pl.augment import Recipe
from esvit_pl.backbones import Features
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.evaluation import EvaluationData, RegionCorrespondence, RegionRetrieval

RECIPE = Recipe(global_size=32, local_size=16, num_local=1, normalize="dataset", mean=(0.5,) * 3, std=(0.5,) * 3)


def module_of(images, recipe=RECIPE, **settings):
    images = ArrayDataset(images, [f"{i}.png" for i in range(len(images))])
    return ImageDataModule(Splits(images, images), recipe, batch_size=4, num_workers=0, **settings)


def gradients(size=64):
    """Images whose colour tells the place: red is the row, green the column."""
    rows = torch.linspace(0, 255, size)
    image = torch.stack([rows[:, None].expand(size, size), rows[None].expand(size, size), torch.zeros(size, size)])
    return image.byte()[None].repeat(6, 1, 1, 1)


class Colours(torch.nn.Module):
    """Regions that tell their place, if colours are kept: (1, red, green) lifted so that a cosine tells them apart."""

    def forward(self, x):
        small = torch.nn.functional.avg_pool2d(x, 4).flatten(2).mT[..., :2]
        regions = torch.cat([small, 1 - small.square().sum(-1, keepdim=True)], -1)  # stereographic: one point each
        regions = torch.cat([2 * small, regions[..., 2:]], -1) / (1 + small.square().sum(-1, keepdim=True))
        return Features(regions.mean(1), regions, (8, 8))


def test_regions_that_tell_their_place_are_found_and_random_ones_are_not():
    data = EvaluationData(pairs=module_of(gradients()).pairs_dataloader)
    right = RegionCorrespondence(color=False).run(Colours(), data)
    assert right["correspondence/near"] > 0.99
    assert right["correspondence/exact"] > 0.6
    assert right["correspondence/distance"] < 4  # pixels: a cell
    assert right["correspondence/exact_chance"] == pytest.approx(1 / 64)
    changed = RegionCorrespondence(color=True).run(Colours(), data)
    assert changed["correspondence/exact"] < right["correspondence/exact"]
    nothing = RegionCorrespondence(color=False).run(lambda x: Colours()(torch.zeros_like(x)), data)
    assert nothing["correspondence/exact"] < 0.1


@pytest.mark.parametrize("evaluator", [RegionCorrespondence(), RegionRetrieval(4)], ids=lambda x: type(x).__name__)
def test_inside_inference_mode_as_lightning_evaluates(evaluator):
    data = EvaluationData(pairs=module_of(gradients()).pairs_dataloader)
    expected = evaluator.run(Colours(), data)
    with torch.inference_mode():
        assert evaluator.run(Colours(), data) == expected


def test_the_same_box_differs_by_mirrors_alone():
    data = module_of(gradients())
    (batch, *_) = data.pairs_dataloader(same_box=True, color=False)
    assert torch.equal(batch["boxes"][:, 0], batch["boxes"][:, 1])
    for one, other, flips in zip(*batch["views"], batch["flipped"], strict=True):
        torch.testing.assert_close(one, other.flip(-1) if flips[0] != flips[1] else other)
    found = RegionCorrespondence(same_box=True, color=False).run(Colours(), EvaluationData(pairs=data.pairs_dataloader))
    assert found["correspondence/exact"] == 1
    assert found["correspondence/regions"] == 2 * 6 * 64


def test_the_same_pairs_every_time_and_others_with_another_seed():
    data = module_of(gradients())
    first, again, other = ([batch["boxes"] for batch in data.pairs_dataloader(seed=seed)] for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="needs pairs of views; give EvaluationData pairs="):
        RegionCorrespondence().run(Colours(), EvaluationData())
    pairs = EvaluationData(pairs=module_of(gradients()).pairs_dataloader)
    with pytest.raises(ValueError, match="gives Features with regions and a grid, got Tensor"):
        RegionCorrespondence().run(lambda x: x.flatten(1), pairs)


def test_retrieval_finds_image_and_place_among_all_images():
    torch.manual_seed(0)
    noise = torch.randint(0, 255, (6, 3, 16, 16)).byte().repeat_interleave(4, 2).repeat_interleave(4, 3)
    data = EvaluationData(pairs=module_of(noise).pairs_dataloader)

    def encoder(x):
        patches = torch.nn.functional.unfold(x, 4, stride=4).mT
        return Features(patches.mean(1), patches, (8, 8))

    right = RegionRetrieval(5, same_box=True, color=False).run(encoder, data)
    assert right["retrieval/image"] > 0.9
    assert right["retrieval/image_chance"] == 1 / 5
    assert right["retrieval/place_chance"] == 1 / (5 * 64)
    blind = RegionRetrieval(5, same_box=True, color=False).run(lambda x: encoder(torch.zeros_like(x)), data)
    assert blind["retrieval/image"] == 1 / 5  # all are equal, and the first is taken
    with pytest.raises(ValueError, match="1 image or more, got 0"):
        RegionRetrieval(0)
