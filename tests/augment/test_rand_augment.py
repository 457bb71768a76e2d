"""RandAugment is timm's, and a function of its seeds."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from esvit_pl.augment import RandAugment, crop_resize
from esvit_pl.seeding import derive_seed

POLICY = "rand-m9-mstd0.5-inc1"


@pytest.fixture
def image() -> torch.Tensor:
    small = torch.randint(0, 256, (3, 6, 6), dtype=torch.uint8)
    return crop_resize(small, (0, 0, 6, 6), 24)


def test_it_is_what_timm_makes_with_these_seeds(image):
    mean = (0.485, 0.456, 0.406)
    theirs = rand_augment_transform(POLICY, {"translate_const": 10, "img_mean": (124, 116, 104)})  # as create_transform
    change = RandAugment(POLICY, size=24, mean=mean)
    changed = 0
    for index in range(20):
        random.seed(derive_seed(0, 3, index))
        np.random.seed(derive_seed(0, 3, index) % 2**32)  # noqa: NPY002
        expected = pil_to_tensor(theirs(to_pil_image(image)))
        found = change(image, 0, 3, index)
        assert torch.equal(found, expected)
        assert (found.dtype, found.shape) == (torch.uint8, image.shape)
        changed += int(not torch.equal(found, image))
    assert changed > 8  # each of two changes has probability 0.5


def test_it_depends_on_its_parts_alone_and_leaves_no_trace(image):
    change, draws = RandAugment(POLICY, size=24), []
    for _ in range(2):
        random.random(), np.random.random()  # noqa: NPY002 - what others have drawn
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        draws.append([change(image, 0, epoch, 7) for epoch in range(8)])
        assert random.getstate() == before[0]
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])
    assert all(torch.equal(one, other) for one, other in zip(*draws, strict=True))
    assert len({view.numpy().tobytes() for view in draws[0]}) > 3


def test_what_a_shift_leaves_empty_has_the_mean_colour():
    white = torch.full((3, 20, 20), 255, dtype=torch.uint8)
    change = RandAugment("rand-m10-p1-n1", size=20, mean=[0.2])
    change.change.ops = [op for op in change.change.ops if op.name.startswith("Translate")]
    for index in range(4):
        values = change(white, index).unique().tolist()
        assert values[0] == 51
        assert values[-1] == 255


@pytest.mark.parametrize("policy", ["rand-m10-n1-p1-inc1", "rand-m0-n1-p1"])
def test_a_bit_is_kept_where_timm_would_keep_none(policy, image):
    change = RandAugment(policy, size=24)
    change.change.ops = [op for op in change.change.ops if op.name in ("Posterize", "PosterizeIncreasing")]
    assert change(image, 0).unique().tolist() == [0, 128]


@pytest.mark.parametrize("policy", ["", "m9", "rand-m9-z3", 5, "rand-mx0"])
def test_other_words_are_refused(policy):
    with pytest.raises(ValueError, match="rand_augment must be words of timm's RandAugment, such as 'rand-m9"):
        RandAugment(policy, size=8)
