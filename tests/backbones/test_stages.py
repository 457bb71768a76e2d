"""What Swin, CvT and ViL share."""

from __future__ import annotations

import pytest
import torch
import toys

from esvit_pl.backbones import build
from esvit_pl.backbones.stages import drop_path_rates

every_family = pytest.mark.parametrize("family", toys.FAMILIES)


def small(family, **changes):
    return build(family, **{**toys.FAMILIES[family], **changes}).eval()


@every_family
@torch.no_grad()
def test_a_spec_builds_the_same_backbone_again(family):
    backbone = small(family, mlp_ratio=2.0, drop_path_rate=0.2)
    again = build(**backbone.spec)
    assert again.spec == backbone.spec
    again.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 28, 28)
    assert torch.equal(again.eval()(x).pooled, backbone(x).pooled)


@every_family
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": [1]}, r"depths, num_heads.* of equal length, one per stage; got .*num_heads=\[1\]"),
        ({"num_heads": [3, 2]}, "stage 0 is 8 wide, which 3 heads do not divide"),
        ({"depths": [2, -1]}, r"depths of 1 or more, got depths=\[2, -1\]"),
        ({"mlp_ratio": -1.0}, "positive mlp_ratio, got -1.0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_none_can_have(family, change, message):
    with pytest.raises(ValueError, match=message):
        small(family, **change)


@every_family
def test_asking_for_more_blocks_than_there_are(family):
    backbone, x = small(family), torch.randn(1, 3, 32, 32)
    blocks = sum(backbone.spec["depths"])
    with pytest.raises(ValueError, match=f"between 1 and the backbone's {blocks} blocks, got {blocks + 1}"):
        backbone.last_blocks(x, blocks + 1)
    with pytest.raises(ValueError, match=f"a block between -{blocks} and {blocks - 1}, got {blocks}"):
        backbone.attention(x, blocks)


def test_stochastic_depth_grows_linearly_to_its_rate():
    rates = drop_path_rates({"depths": [1, 3], "drop_path_rate": 0.3})
    assert rates == [[0.0], pytest.approx([0.1, 0.2, 0.3])]
    assert drop_path_rates({"depths": [1], "drop_path_rate": 0.3}) == [[0.0]]


@every_family
def test_fewer_blocks_are_the_end_of_more(family):
    """So a probe that tries several numbers of blocks computes those of the largest number once."""
    backbone = small(family)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        blocks = sum(backbone.spec["depths"])
        most = backbone.last_blocks(x, blocks)
        for n in range(1, blocks):
            torch.testing.assert_close(most[:, -backbone.last_blocks_width(n) :], backbone.last_blocks(x, n))
        features, again = backbone.features_and_blocks(x, blocks)
        torch.testing.assert_close(again, most)
        torch.testing.assert_close(features.regions, backbone(x).regions)


@every_family
@torch.no_grad()
def test_every_stage_has_a_region_map(family):
    backbone, x = small(family), torch.randn(2, 3, 48, 32)
    features, maps = backbone(x), [backbone.stage_regions(x, stage) for stage in range(backbone.num_stages)]
    assert [tuple(part.regions.shape) for part in maps] == [(2, 12 * 8, 8), (2, 6 * 4, 16)]
    assert [part.grid for part in maps] == [(12, 8), (6, 4)]
    assert torch.equal(maps[-1].regions, features.regions)
    assert torch.equal(backbone.stage_regions(x).regions, features.regions)
    blocks = [*backbone.block_features(x)]
    for seen, expected in zip((blocks[backbone.spec["depths"][0] - 1], blocks[-1]), maps, strict=True):
        assert seen.grid == expected.grid
        assert torch.equal(seen.regions, expected.regions)
        if family != "vil" or seen is blocks[-1]:  # of ViL a global token
            torch.testing.assert_close(seen.regions.mean(1), seen.pooled)
    torch.testing.assert_close(torch.cat([seen.pooled for seen in blocks], 1), backbone.last_blocks(x, len(blocks)))
    with pytest.raises(ValueError, match="needs a stage between -2 and 1, got 2"):
        backbone.stage_regions(x, 2)
