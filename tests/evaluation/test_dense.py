from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import toys
from dense_files import COLOURS, VOID, blocks, write_ade, write_spair, write_voc
from PIL import Image
from torch import nn

from esvit_pl.augment import Recipe
from esvit_pl.backbones import build
from esvit_pl.data import DenseLoaders
from esvit_pl.datasets import ade20k, spair71k, voc2012
from esvit_pl.evaluation import (
    DenseData,
    EvaluationData,
    KeypointCorrespondence,
    RawRegions,
    SegmentationInContext,
    SegmentationKNN,
    SegmentationLinear,
    Training,
)

RECIPE = Recipe(eval_crop=32)
RED, GREEN, BLUE = torch.eye(3)


def columns(*colours, size=4):
    """An image (3 size size) of vertical stripes of equal width."""
    return torch.stack(colours, -1).repeat_interleave(size // len(colours), -1)[:, None].expand(3, size, size)


def masks(*rows):
    """Masks (b 4 4), each of four equal rows."""
    return torch.tensor(rows)[:, None].expand(len(rows), 4, 4).clone()


def loaders(splits, size=32, **how):
    return DenseLoaders(splits, RECIPE, size=size, batch_size=2, num_workers=0, **how)


@pytest.fixture
def voc(tmp_path):
    """Three images to learn from and two to be measured on, of 4 x 4 blocks of four colours."""
    return voc2012(write_voc(tmp_path, {"train": [blocks(i) for i in range(3)], "val": [blocks(i) for i in (7, 8)]}))


# -- by hand


def test_mean_iou_of_knn_by_hand():
    """Red regions are class 0 and green ones class 1: so the bank says, whose blue region is void all over."""
    bank = masks([0, VOID, 1, 1], [VOID, VOID, 1, 0])
    bank[1, :, 3] = 1
    images = torch.stack([columns(RED, GREEN), columns(BLUE, GREEN)])
    query = {"image": columns(RED, GREEN)[None], "mask": masks([0, 0, 0, 1])}
    data = DenseData([{"image": images, "mask": bank}], [query], classes=["red", "green", "never"])
    found = SegmentationKNN(k=2).run(RawRegions(grid=2, side=1), data)
    # predicted are the columns 0 0 1 1. Class 0: 8 of 12 pixels, class 1: 4 of 8
    assert found == {
        "segmentation_knn/miou": pytest.approx((2 / 3 + 1 / 2) / 2),
        "segmentation_knn/pixel_accuracy": pytest.approx(12 / 16),
        "segmentation_knn/iou/red": pytest.approx(2 / 3),
        "segmentation_knn/iou/green": pytest.approx(1 / 2),
    }


def test_in_context_a_region_votes_for_all_its_classes():
    """Two red regions are half 0 and half 1, a third is all 1. Each has one voice in k-NN: 0 wins; shares: 1 wins."""
    images = torch.stack([columns(RED, RED), columns(RED, BLUE)])
    bank = {"image": images, "mask": masks([0, 1, 0, 1], [1, 1, 2, 2])}
    query = {"image": columns(RED, RED)[None], "mask": masks([1, 1, 1, 1])}
    data = DenseData([bank], [query], classes=["zero", "one", "two"])
    encoder = RawRegions(grid=2, side=1)
    assert SegmentationKNN(k=6).run(encoder, data)["segmentation_knn/miou"] == 0
    found = SegmentationInContext(k=6).run(encoder, data)
    assert found["segmentation_in_context/miou"] == 1


def test_the_edge_of_a_class_lies_where_interpolated_votes_are_equal():
    """Between a red and a green region of four pixels: votes are equal in the middle, so the prediction is right."""
    mask = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 8, 8)
    batch = {"image": columns(RED, GREEN, size=8)[None], "mask": mask}
    data = DenseData([batch], [batch], classes=["a", "b"])
    assert SegmentationKNN(k=1).run(RawRegions(grid=2, side=1), data)["segmentation_knn/miou"] == 1


def test_the_bank_is_bounded_and_does_not_depend_on_the_batches(voc):
    encoder, asked = RawRegions(grid=8), SegmentationKNN(bank_regions=30)
    bank = asked.bank(encoder, loaders(voc).data())
    assert (len(bank.regions), len(bank.labels), bank.labels.shape[1]) == (30, 30, 21)
    single = DenseLoaders(voc, RECIPE, size=32, batch_size=1, num_workers=0).data()
    assert all(map(torch.equal, bank, asked.bank(encoder, single)))
    other = SegmentationKNN(bank_regions=30, seed=1).bank(encoder, single)
    assert not torch.equal(bank.regions, other.regions)
    whole = SegmentationKNN().bank(encoder, single)
    assert len(whole.regions) == 3 * 64


# -- on files in the layouts of the data sets


@pytest.mark.parametrize(
    "asked",
    [SegmentationKNN(k=5), SegmentationInContext(k=5), SegmentationLinear(epochs=60, lr=0.05)],
    ids=lambda asked: asked.name,
)
def test_colours_tell_the_classes_of_voc_and_of_ade(tmp_path, voc, asked):
    masks = {"training": [blocks(i) for i in range(3)], "validation": [blocks(i) for i in (7, 8)]}
    masks["validation"][0][0, :2] = VOID
    for splits in (voc, ade20k(write_ade(tmp_path, masks))):
        found = asked.run(RawRegions(grid=32, side=1), loaders(splits).data())  # a region for each pixel
        assert found[f"{asked.name}/miou"] == 1
        assert len([name for name in found if "/iou/" in name]) == 4  # the others do not occur


def test_a_linear_head_learns_from_the_same_order_every_time_and_leaves_no_trace(voc):
    def run(seed=0):
        asked = SegmentationLinear(epochs=2, seed=seed)
        head = asked.train(RawRegions(grid=4), loaders(voc).data())
        return toys.state(head)

    before = (torch.get_rng_state(), random.getstate())
    first = run()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert toys.largest_difference(first, run()) == 0
    assert toys.largest_difference(first, run(seed=1)) > 0


@pytest.mark.parametrize("family", [*toys.FAMILIES, "test_vit"])
def test_every_stage_of_every_family(voc, family):
    """A stage is asked as an encoder would be whose only regions are those of the stage."""
    torch.manual_seed(0)
    backbone = build(family, **toys.FAMILIES.get(family, {"img_size": 32}))
    backbone.eval().requires_grad_(False)

    class Alone(nn.Module):
        num_stages = 1

        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def stage_regions(self, x, stage):
            return backbone.stage_regions(x, self.stage)

    data = loaders(voc, size=64).data()
    for stage in range(backbone.num_stages):
        asked = SegmentationKNN(stage=stage)
        asked.check(backbone, None)
        found = asked.run(backbone, data)
        assert found == SegmentationKNN().run(Alone(stage), data)
        assert 0 < found["segmentation_knn/miou"] <= 1
    with pytest.raises(ValueError, match=rf"stage={backbone.num_stages} must lie between"):
        SegmentationKNN(stage=backbone.num_stages).check(backbone, None)
    linear = SegmentationLinear(epochs=1, stage=0).run(backbone, data)
    assert 0 <= linear["segmentation_linear/miou"] <= 1


# -- keypoints


def noise(seed=0):
    """32 x 32 numbers for each colour: 4 x 4 in each of 8 x 8 regions."""
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)


def picture(numbers, rows=2, columns=2):
    """Every number as a block of so many pixels."""
    return Image.fromarray(numbers.repeat(rows, 0).repeat(columns, 1))


def shifted(numbers, down, right):
    """By so many regions."""
    return np.roll(numbers, (4 * down, 4 * right), (0, 1))


def test_a_shifted_picture_is_found_where_it_went(tmp_path):
    """The target shows the source one region further down and two further right, in regions of 16 x 24 pixels."""
    source, target = picture(noise()), picture(shifted(noise(), 1, 2), 4, 6)
    points = [[4, 4], [20, 28], [36, 12]]  # in the regions (row, column) 0 0, 3 2, 1 4
    moved = [[60, 24], [108, 72], [156, 40]]  # in the regions 1 2, 4 4, 2 6
    wrong = [[60, 24], [108, 72], [12, 120]]  # the last one somewhere else
    box = [0, 0, 40, 40]  # so 4 pixels are near
    pairs = [
        {"category": "cat", "src": ("a", source, points, box), "trg": ("b", target, moved, box)},
        {"category": "dog", "src": ("c", source, points, box), "trg": ("d", target, wrong, box)},
        {"category": "dog", "src": ("e", source, points[2:], box), "trg": ("f", target, wrong[2:], box)},
    ]
    data = loaders(spair71k(write_spair(tmp_path, pairs)), size=64).data()
    found = KeypointCorrespondence().run(RawRegions(grid=8), data)
    assert found == {
        "keypoints/pck": pytest.approx(5 / 7),
        "keypoints/pck_image": pytest.approx((1 + 2 / 3 + 0) / 3),
        "keypoints/pck_category": pytest.approx((1 + 2 / 4) / 2),
        "keypoints/pck/cat": 1,
        "keypoints/pck/dog": pytest.approx(2 / 4),
        "keypoints/points": 7,
    }
    assert KeypointCorrespondence(alpha=0.001).run(RawRegions(grid=8), data)["keypoints/pck"] < 5 / 7


def test_batches_and_padding_change_nothing(tmp_path):
    box, pairs = [0, 0, 30, 60], []
    for number in range(1, 4):  # keypoints, and regions by which the target is shifted
        points = [[4 + 8 * region, 4] for region in range(number)]
        moved = [[x + 8 * number, y] for x, y in points]
        source, target = picture(noise()), picture(shifted(noise(), 0, number))
        names = (f"s{number}", f"t{number}")
        pairs += [{"category": "cat", "src": (names[0], source, points, box), "trg": (names[1], target, moved, box)}]
    splits = spair71k(write_spair(tmp_path, pairs))
    one, two = (DenseLoaders(splits, RECIPE, size=64, batch_size=size, num_workers=0).data() for size in (1, 3))
    answer = KeypointCorrespondence().run(RawRegions(grid=8), one)
    assert answer == KeypointCorrespondence().run(RawRegions(grid=8), two)
    assert answer["keypoints/points"] == 6
    assert answer["keypoints/pck"] == 1


# -- what is refused


def test_what_is_missing_is_said(tmp_path, voc):
    with pytest.raises(ValueError, match=r"SegmentationKNN needs images with masks or keypoints.* esvit-dense asks it"):
        SegmentationKNN().run(RawRegions(grid=2), EvaluationData())
    with pytest.raises(ValueError, match="needs bank images; give EvaluationData bank="):
        SegmentationKNN().run(RawRegions(grid=2), DenseData(classes=["a"]))
    void = {"image": torch.zeros(1, 3, 4, 4), "mask": torch.full((1, 4, 4), VOID)}
    with pytest.raises(ValueError, match="the bank's are all void"):
        SegmentationKNN().run(RawRegions(grid=2), DenseData([void], [void], classes=["a"]))
    empty = DenseData([void], [void], classes=["a"], train=lambda: Training([], 1))
    with pytest.raises(ValueError, match="needs a training image or more"):
        SegmentationLinear().run(RawRegions(grid=2), empty)
    with pytest.raises(ValueError, match="need a pair of images or more"):
        KeypointCorrespondence().run(RawRegions(grid=2), DenseData(query=[], classes=["a"]))
    for made, message in (
        (lambda: SegmentationKNN(k=0), "k of 1 or more"),
        (lambda: SegmentationKNN(bank_regions=0), "bank_regions of 1 or more, got 0"),
        (lambda: SegmentationLinear(epochs=0), "epochs=0"),
        (lambda: KeypointCorrespondence(alpha=0), "alpha=0"),
    ):
        with pytest.raises(ValueError, match=message):
            made()
    with pytest.raises(ValueError, match="needs images with masks or keypoints"):
        SegmentationKNN().run(RawRegions(grid=2), EvaluationData([void], [void]))


def test_colours_of_the_stand_ins_differ_when_normalised():
    prepared = torch.from_numpy(COLOURS).float() / 255 - torch.tensor(RECIPE.mean)
    cosines = nn.functional.normalize(prepared, dim=1) @ nn.functional.normalize(prepared, dim=1).T
    assert (cosines - torch.eye(5)).max() < 0.9
