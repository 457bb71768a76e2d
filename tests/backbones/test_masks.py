"""Patches that are hidden from a backbone: Swin, ViT and DeiT replace their embeddings by one learnt vector."""

from __future__ import annotations

import pytest
import torch
import toys

from esvit_pl.backbones import Backbone, build
from esvit_pl.network import MultiCropNetwork

SWIN = {"name": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window": 4, "img_size": 32}
VIT = {"name": "vit_tiny_patch16_224", "img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8}


def masked(spec: dict) -> Backbone:
    backbone = build(**spec).eval()
    backbone.learn_mask()
    return backbone


@pytest.mark.parametrize(("spec", "cell"), [(SWIN, 8), (VIT, 8)], ids=["swin", "vit"])
def test_what_is_hidden_is_not_seen(spec, cell):
    """Pixels under the mask change nothing, others do; and the vector learns."""
    backbone = masked(spec)
    images, mask = torch.randn(2, 3, 32, 32), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 3, 0] = True
    other = images.clone()
    other[0, :, cell : 2 * cell, 2 * cell : 3 * cell] = 7.0
    other[1, :, 3 * cell :, :cell] = -7.0
    assert torch.equal(backbone(images, mask).regions, backbone(other, mask).regions)
    assert not torch.allclose(backbone(images).regions, backbone(other).regions)
    other[0, :, 0, 0] += 1
    assert not torch.allclose(backbone(images, mask).regions, backbone(other, mask).regions)
    backbone(images, mask).regions.square().sum().backward()
    assert backbone.mask_vector.grad.abs().sum() > 0


@pytest.mark.parametrize("spec", [SWIN, VIT], ids=["swin", "vit"])
def test_a_mask_that_hides_nothing_changes_nothing(spec):
    backbone, images = masked(spec), torch.randn(2, 3, 32, 32)
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert torch.equal(backbone(images, nothing).regions, backbone(images).regions)


def test_odd_sides_are_rounded_up():
    backbone, images = masked(SWIN), torch.randn(1, 3, 36, 28)  # 9 x 7 patches, 5 x 4 regions
    mask = torch.zeros(1, 5, 4, dtype=torch.bool)
    mask[0, 4, 3] = True  # the last patch of each side alone
    other = images.clone()
    other[..., 32:, 24:] = 9.0
    assert torch.equal(backbone(images, mask).regions, backbone(other, mask).regions)


def test_before_learn_mask_a_backbone_has_no_vector():
    backbone = build(**SWIN)
    assert "mask_vector" not in backbone.state_dict()
    with pytest.raises(ValueError, match=r"no mask vector; call learn_mask\(\) first"):
        backbone(torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 4, dtype=torch.bool))


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\), images and the grid of regions, got \(1, 2, 2\)"):
        masked(SWIN)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 2, dtype=torch.bool))


@pytest.mark.parametrize("family", ["cvt", "vil", "resnet18"])
def test_other_families_say_who_can(family):
    backbone = build(family, **toys.FAMILIES.get(family, {}))
    for ask in (backbone.learn_mask, lambda: backbone(torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 4).bool())):
        with pytest.raises(NotImplementedError, match="cannot hide patches from itself.*swin_tiny_w7"):
            ask()


def test_a_network_masks_some_views_of_a_run_and_none_of_another():
    network = MultiCropNetwork(masked(SWIN), torch.nn.ModuleDict()).eval()
    views = [torch.randn(2, 3, side, side) for side in toys.SIDES]
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    seen, plain = network(views, masks=[mask, None, None, None]), network(views)
    assert not torch.allclose(seen.regions[0], plain.regions[0])
    for view in (1, 2, 3):
        assert torch.equal(seen.regions[view], plain.regions[view])
