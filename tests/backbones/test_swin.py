from __future__ import annotations

import golden_files
import pytest
import torch
from golden_files import image, relative_error
from timm.models.swin_transformer import SwinTransformer

from esvit_pl.backbones import build
from esvit_pl.backbones.swin import shifted_window_mask

TINY = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window": 4, "img_size": 32, "drop_path_rate": 0.0}


@pytest.fixture(scope="module", params=golden_files.paths("swin_"), ids=lambda path: path.stem)
def golden(request):
    file = golden_files.read(request.param)
    backbone = golden_files.swin_from(file.part("w"), file.settings["window"])
    return file, backbone.eval()


@pytest.mark.golden
@torch.no_grad()
def test_features_are_the_released_ones(golden):
    golden_files.check_features(*golden, relative_error, 1e-4)


@pytest.mark.golden
@torch.no_grad()
def test_last_blocks_and_attention_are_the_released_ones(golden):
    golden_files.check_last_blocks(*golden, relative_error, 1e-4)
    file, backbone = golden
    for side in file.sizes("attn_last"):
        attention = backbone.attention(image(2, side))
        assert attention.grid == (1, 1)
        assert relative_error(attention.weights[:, 0], file.tensors[f"attn_last.{side}"]) < 1e-4


@torch.no_grad()
def test_at_the_nominal_size_timm_and_the_release_agree():
    torch.manual_seed(0)
    backbone = build("swin", **TINY)
    model = SwinTransformer(
        img_size=32, num_classes=0, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, strict_img_size=False
    ).eval()
    model.load_state_dict(backbone.state_dict())
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps = 1e-6
    x = torch.randn(2, 3, 32, 32)
    assert relative_error(backbone(x).pooled, model(x)) < 1e-5
    # 20 px: maps of 5 and 3, no multiple of the window, where timm rolls before it pads
    assert relative_error(backbone(x[..., :20, :20]).pooled, model(x[..., :20, :20])) > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(32, 32, (4, 4)), (20, 36, (3, 5)), (17, 31, (3, 4)), (4, 4, (1, 1))]
)
def test_any_input_gives_its_regions(height, width, grid):
    features = build("swin", **TINY)(torch.randn(2, 3, height, width))
    assert features.grid == grid
    assert features.pooled.shape == (2, 16)
    assert features.regions.shape == (2, grid[0] * grid[1], 16)
    assert torch.allclose(features.pooled, features.regions.mean(1), atol=1e-6)


def test_attention_rows_sum_to_one_and_shifted_windows_hide_strangers():
    attention = build("swin", **TINY).attention(torch.randn(2, 3, 32, 32), block=1)
    assert attention.grid == (2, 2)
    assert attention.weights.shape == (2, 4, 1, 16, 16)
    assert torch.allclose(attention.weights.sum(-1), torch.ones(2, 4, 1, 16), atol=1e-5)
    # in the last window the map's four corners meet: token 0 and token 15 were never neighbours
    assert attention.weights[:, 3, :, 0, 15].max() < 1e-6


def test_mask_by_hand():
    mask = shifted_window_mask(4, 4, 2, 1, torch.device("cpu"), torch.float32)
    assert mask.shape == (4, 4, 4)
    assert mask[0].eq(0).all()  # the first window rolled nothing in
    assert mask[1, 0].tolist() == [0, -100, 0, -100]  # right edge: columns of two origins
    assert mask[3, 0].tolist() == [0, -100, -100, -100]  # corner: four origins


def test_masks_are_made_once_per_size():
    backbone = build("swin", **TINY)
    shifted_window_mask.cache_clear()
    for _ in range(3):
        backbone(torch.randn(1, 3, 32, 32))
        backbone(torch.randn(1, 3, 40, 40))
    info = shifted_window_mask.cache_info()
    assert info.misses == 2  # one stage shifts at two sizes
    assert info.hits == 4


def test_windows_follow_from_the_nominal_size_and_no_input_changes_them():
    backbone = build("swin", embed_dim=8, depths=[2, 2], num_heads=[1, 2], window=7, img_size=56)
    before = [(block.window, block.shift) for stage in backbone.layers for block in stage.blocks]
    assert before == [(7, 0), (7, 3), (7, 0), (7, 0)]  # 14 tokens: shifted; 7 tokens: one window, no shift
    backbone(torch.randn(1, 3, 96, 96))
    assert before == [(block.window, block.shift) for stage in backbone.layers for block in stage.blocks]


def test_stochastic_depth_grows_linearly_to_its_rate():
    backbone = build("swin", **{**TINY, "drop_path_rate": 0.3})
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_spec_builds_the_same_backbone_again():
    backbone = build("swin", **TINY, init="fan_in")
    again = build(**backbone.spec)
    again.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 24, 24)
    assert torch.equal(again(x).pooled, backbone(x).pooled)


def test_fan_in_initialisation_has_unit_gain():
    backbone = build("swin", embed_dim=96, depths=[1], num_heads=[3], window=8, img_size=32, init="fan_in")
    weight = backbone.layers[0].blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(96**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": [1]}, r"as many num_heads as depths.*depths=\[2, 2\], num_heads=\[1\]"),
        ({"num_heads": [3, 2]}, "stage 0 is 8 wide, which 3 heads do not divide"),
        ({"depths": [2, -1]}, r"depths of 1 or more.*got depths=\[2, -1\]"),
        ({"mlp_ratio": -1.0}, "positive mlp_ratio, got -1.0"),
        ({"window": 0}, "positive window, got 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate in \[0, 1\), got 1.0"),
        ({"init": "xavier"}, "'fan_in', got 'xavier'"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build("swin", **{**TINY, **change})


def test_asking_for_more_blocks_than_there_are():
    with pytest.raises(ValueError, match="between 1 and the backbone's 4 blocks, got 5"):
        build("swin", **TINY).last_blocks(torch.randn(1, 3, 32, 32), 5)


def test_an_unknown_family_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match="'swinn'; did you mean swin"):
        build("swinn")
