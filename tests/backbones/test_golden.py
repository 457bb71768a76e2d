"""Swin, CvT and ViL compute what the released implementation computes."""

from __future__ import annotations

import golden_files
import pytest
import torch
from golden_files import FAMILIES, image, relative_error

pytestmark = pytest.mark.golden
BOUNDS = {"swin": 1e-4, "cvt": 1e-5, "vil": 1e-5}


@pytest.fixture(
    scope="module",
    params=[path for family in ("swin_", "cvt", "vil_") for path in golden_files.paths(family)],
    ids=lambda path: path.stem,
)
def golden(request):
    """The file, its backbone, and the largest error that is accepted."""
    file = golden_files.read(request.param)
    backbone = golden_files.backbone_from(file.part("w"), file.settings)
    return file, backbone.eval(), BOUNDS[backbone.spec["name"]]


@torch.no_grad()
def test_features_at_every_size_of_the_file(golden):
    file, backbone, bound = golden
    assert file.sizes("global")
    for side in file.sizes("global"):
        pooled = file.tensors[f"global.{side}"]
        features = backbone(image(len(pooled), side))
        assert relative_error(features.pooled, pooled) < bound
        assert relative_error(features.regions, file.tensors[f"region.{side}"]) < bound
        assert features.grid[0] * features.grid[1] == features.regions.shape[1]


@torch.no_grad()
def test_the_last_blocks_for_every_number_and_size_of_the_file(golden):
    file, backbone, bound = golden
    keys = [key for key in file.tensors if key.startswith("last")]
    assert keys
    for key in keys:
        name, _, side = key.partition(".")
        n, reference = int(name.removeprefix("last")), file.tensors[key]
        assert relative_error(backbone.last_blocks(image(len(reference), int(side)), n), reference) < bound
        assert backbone.last_blocks_width(n) == reference.shape[1]


@torch.no_grad()
def test_attention_where_the_file_has_it(golden):
    file, backbone, bound = golden
    for side in file.sizes("attn_last"):
        attention = backbone.attention(image(len(file.tensors[f"global.{side}"]), side))
        weights = attention.weights
        if attention.prefix is not None:
            weights = torch.cat([attention.prefix, weights[:, 0]], dim=2)
        assert relative_error(weights.flatten(0, 1), file.tensors[f"attn_last.{side}"]) < bound


def test_with_gradients_features_are_the_same(golden):
    """Where a bias learns, a CPU takes another way."""
    file, backbone, bound = golden
    side = min(file.sizes("global"))
    reference = file.tensors[f"region.{side}"]
    features = backbone(image(len(reference), side))
    assert features.regions.requires_grad
    assert relative_error(features.regions, reference) < bound


def test_weights_go_back_to_the_released_names(golden):
    file, backbone, _ = golden
    family = FAMILIES[backbone.spec["name"]]
    again = family.to_released(backbone.state_dict())
    wanted = {name: value for name, value in file.part("w").items() if not name.endswith("attn_mask")}
    assert all(torch.equal(again[name], value) for name, value in wanted.items())
    assert all(name.endswith("relative_position_index") for name in again.keys() - wanted.keys())
    assert family.from_released(again).keys() == backbone.state_dict().keys()
