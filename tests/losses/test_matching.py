from __future__ import annotations

import pytest
import torch

from esvit_pl.losses import match_regions, match_views, matched_share


def test_the_region_of_highest_cosine_by_hand():
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]])
    student = torch.tensor([[[3.0, 1.0], [0.1, 0.2], [-9.0, 1.0], [2.0, 0.0]]])
    assert match_regions(student, teacher).tolist() == [[0, 1, 2, 0]]


def test_images_do_not_mix():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(3, 4, 8), dim=-1)
    shuffled = torch.stack([image[torch.randperm(4)] for image in features])
    found = torch.take_along_dim(shuffled, match_regions(features, shuffled)[..., None], dim=1)
    assert torch.equal(found, features)


def test_every_pair_of_different_views():
    views = [torch.randn(2, n, 3) for n in (4, 4, 1)]
    matches = match_views(views, views[:2])
    assert set(matches) == {(0, 1), (0, 2), (1, 0), (1, 2)}
    assert [match.shape[1] for match in matches.values()] == [4, 1, 4, 1]


def test_share_of_regions_that_are_matched_at_all():
    matches = {(0, 1): torch.tensor([[0, 0, 1, 1]]), (1, 0): torch.tensor([[2, 2, 2, 2]])}
    assert matched_share(matches, [4, 4]).item() == pytest.approx((0.5 + 0.25) / 2)
