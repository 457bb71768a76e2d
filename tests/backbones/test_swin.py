from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from golden_files import relative_error
from timm.models.swin_transformer import SwinTransformer

from benchmarks.tokens import with_padding
from esvit_pl.backbones import build
from esvit_pl.backbones.swin_windows import window_plan

TINY = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window": 4, "img_size": 32, "drop_path_rate": 0.0}


def block_and_padded(window, shift, drop_path_rate=0.0):
    """A block in float64, with biases that matter, and a copy of it that computes padding like any token."""
    sizes = {"embed_dim": 8, "depths": [2], "num_heads": [2], "window": window, "img_size": 8 * window}
    backbone = build("swin", **sizes, drop_path_rate=drop_path_rate).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_()
    ours, padded = (swin.layers[0].blocks[1 if shift else 0] for swin in (backbone, with_padding(backbone)))
    assert (ours.window, ours.shift) == (window, shift)
    return ours, padded


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
    assert attention.grid == (8, 8)
    assert attention.weights.shape == (2, 4, 1, 16, 16)
    # the map is rolled by 2: the last window holds its four corners
    assert attention.keys[3].tolist() == [54, 55, 48, 49, 62, 63, 56, 57, 6, 7, 0, 1, 14, 15, 8, 9]
    assert torch.equal(attention.queries, attention.keys)
    assert torch.allclose(attention.weights.sum(-1), torch.ones(2, 4, 1, 16), atol=1e-5)
    # in the last window the map's four corners meet: token 0 and token 15 were never neighbours
    assert attention.weights[:, 3, :, 0, 15].max() < 1e-6


# maps of 24 12 6 3 tokens (96 px), one without padding, odd ones, wide ones, and maps below the shift of 3
MAPS = [(24, 24), (12, 12), (6, 6), (3, 3), (14, 21), (13, 5), (8, 30), (7, 9), (2, 1)]


@pytest.mark.parametrize("grid", MAPS, ids=str)
@pytest.mark.parametrize(("window", "shift"), [(7, 0), (7, 3), (14, 0), (14, 7)])
def test_padding_that_is_not_computed_counts_all_the_same(window, shift, grid):
    """Values, and gradients to everything that learns, of the form that computes padding like any token."""
    ours, padded = block_and_padded(window, shift)
    x = torch.randn(2, *grid, 8, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    mine, theirs = [
        [value, *torch.autograd.grad((value * direction).sum(), [x, *block.parameters()])]
        for block in (ours, padded)
        for value in [block(x)]
    ]
    for name, a, b in zip(["value", "x", *dict(ours.named_parameters())], mine, theirs, strict=True):
        assert relative_error(a, b) < 1e-12, name


def test_padding_by_hand():
    """One token in a window of 2 x 2: three places of padding see to it that most of what it gathers is the bias."""
    block = build("swin", embed_dim=1, depths=[1], num_heads=[1], window=2, img_size=16).layers[0].blocks[0].double()
    with torch.no_grad():
        block.attn.qkv.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]))  # all keys alike; a token's value is itself
        block.attn.qkv.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))
        block.attn.proj.weight.fill_(1.0)
        block.attn.proj.bias.zero_()
        # from the first place of a window: itself, its right, lower and diagonal neighbour, as the table has them
        for place, weight in zip(block.attn.relative_position_index[0], (1.0, 2.0, 3.0, 4.0), strict=True):
            block.attn.relative_position_bias_table[place] = torch.tensor(weight).log()
        gathered = block.window_attention(torch.tensor([5.0]).double().view(1, 1, 1, 1))
    assert gathered.item() == pytest.approx((1 * (5 + 10) + (2 + 3 + 4) * 10) / 10)


def test_no_padding_passes_through_a_layer():
    """A map of 3 x 3 in a window of 7: 9 rows for each image, not 49."""
    block, _ = block_and_padded(7, 0)
    seen = []
    for layer in (block.attn.qkv, block.attn.proj):
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].shape))
    block(torch.randn(2, 3, 3, 8, dtype=torch.float64))
    assert seen == [(2, 3, 3, 8)] * 2


@torch.no_grad()
def test_without_padding_nothing_is_added():
    block, padded = block_and_padded(7, 3)
    block.with_padding = None  # would raise if it were called
    x = torch.randn(1, 14, 21, 8, dtype=torch.float64)
    assert relative_error(block(x), padded(x)) < 1e-12


def test_stochastic_depth_draws_the_same():
    ours, padded = block_and_padded(7, 3, drop_path_rate=0.5)
    x = torch.randn(16, 5, 6, 8, dtype=torch.float64)
    torch.manual_seed(1)
    mine = ours.train()(x)
    torch.manual_seed(1)
    assert relative_error(mine, padded.train()(x)) < 1e-12
    assert mine.eq(x).flatten(1).all(1).any()  # some images skipped the block


def test_a_copy_learns_on_its_own():
    block, _ = block_and_padded(7, 3)
    copy = deepcopy(block)
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    assert torch.equal(copy(x), block(x))
    copy(x).sum().backward()
    assert all(parameter.grad is None for parameter in block.parameters())
    assert all(parameter.grad is not None for parameter in copy.parameters())


def test_autocast_agrees_within_its_precision():
    ours, padded = block_and_padded(7, 3)
    x = torch.randn(2, 5, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = ours.float().window_attention(x), padded.float().window_attention(x)
    assert mine.dtype == torch.bfloat16
    assert 0 < relative_error(mine.double(), ours.window_attention(x).double()) < 0.03
    assert relative_error(mine.float(), theirs.float()) < 0.03


def test_windows_are_moved_in_the_type_of_autocast(monkeypatch):
    ours, _ = block_and_padded(7, 3)
    moved = []
    roll = torch.Tensor.roll
    monkeypatch.setattr(torch.Tensor, "roll", lambda x, *how: moved.append(x.dtype) or roll(x, *how))
    with torch.autocast("cpu", torch.bfloat16):
        ours.float()(torch.randn(2, 5, 6, 8))
    assert moved == [torch.bfloat16] * 2


def test_compiled_in_one_graph():
    backbone = build("swin", **{**TINY, "depths": [2], "num_heads": [1]})
    compiled = torch.compile(backbone, backend="eager", fullgraph=True, dynamic=False)
    x = torch.randn(1, 3, 20, 20)
    assert relative_error(compiled(x).pooled, backbone(x).pooled) < 1e-6


def test_plans_are_made_once_per_size():
    backbone = build("swin", **TINY)
    window_plan.cache_clear()
    for _ in range(3):
        backbone(torch.randn(1, 3, 32, 32))
        backbone(torch.randn(1, 3, 40, 40))
    info = window_plan.cache_info()
    assert info.misses == 6  # at each size the plain and the shifted block of one stage, and the two of the other share
    assert info.hits == 3 * 8 - info.misses


def test_plans_made_in_inference_mode_serve_training():
    backbone = build("swin", **TINY)
    window_plan.cache_clear()
    x = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        backbone(x)
    backbone(x).pooled.sum().backward()
    assert backbone.layers[0].blocks[1].attn.relative_position_bias_table.grad.abs().max() > 0


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


def test_fan_in_initialisation_has_unit_gain():
    backbone = build("swin", embed_dim=96, depths=[1], num_heads=[3], window=8, img_size=32, init="fan_in")
    weight = backbone.layers[0].blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(96**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "positive window, got 0"),
        ({"init": "xavier"}, "'fan_in', got 'xavier'"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build("swin", **{**TINY, **change})


def test_an_unknown_family_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match="'swinn'; did you mean swin"):
        build("swinn")
