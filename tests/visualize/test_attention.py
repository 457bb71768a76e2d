from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import Attention, build
from esvit_pl.visualize import attention_maps, draw_attention, heaviest
from esvit_pl.visualize.attention import map_of, prefix_map, sharpest

SIZES = {"vit": {"name": "test_vit", "img_size": 32, "patch_size": 8}}


def backbone_of(family):
    torch.manual_seed(0)
    spec = dict(SIZES.get(family) or {"name": family, **toys.FAMILIES[family]})
    return build(**spec).eval()


def in_windows(grid, window_tokens, weights):
    """Attention whose windows hold the given tokens of a map."""
    places = torch.tensor(window_tokens)
    return Attention(torch.as_tensor(weights), places, places, grid)


def test_windows_are_stitched_by_hand():
    """A map of 2 x 3 in two windows of 2 x 2, the second half padding, rolled by nothing."""
    windows = [[0, 1, 3, 4], [2, -1, 5, -1]]
    weights = torch.zeros(1, 2, 1, 4, 4)
    weights[0, 0, 0, 2] = torch.tensor([0.1, 0.2, 0.3, 0.4])  # of token 3: row 1, column 0
    weights[0, 1, 0, 0] = torch.tensor([0.5, 0.1, 0.3, 0.1])  # of token 2: row 0, column 2
    attention = in_windows((2, 3), windows, weights)
    torch.testing.assert_close(map_of(attention, (1, 0))[0, 0], torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.4, 0.0]]))
    torch.testing.assert_close(map_of(attention, (0, 2))[0, 0], torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.3]]))


def test_a_token_before_the_map_by_hand():
    weights = torch.tensor([[0.4, 0.1, 0.5], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])[None, None]
    attention = Attention.of_all(weights, (1, 2))
    torch.testing.assert_close(prefix_map(attention)[0, 0], torch.tensor([[0.1, 0.5]]))
    torch.testing.assert_close(map_of(attention, (0, 1))[0, 0], torch.tensor([[0.3, 0.4]]))
    with pytest.raises(ValueError, match="no token before the map"):
        prefix_map(in_windows((1, 1), [[0]], torch.ones(1, 1, 1, 1, 1)))


@torch.no_grad()
@pytest.mark.parametrize("block", [0, 1])
def test_swins_maps_times_values_are_what_its_block_computes(block):
    """Windows, shift and padding are undone: what is missing from a map's sum lies on padding, whose value is known."""
    torch.manual_seed(0)
    swin = build("swin", embed_dim=8, depths=[2], num_heads=[2], window=4, img_size=64).eval()
    torch.nn.init.normal_(swin.layers[0].blocks[block].attn.qkv.bias)
    torch.nn.init.normal_(swin.layers[0].blocks[block].attn.relative_position_bias_table)
    x = torch.randn(1, 3, 28, 20)
    attention, (layer,) = swin.attention(x, block), [swin.layers[0].blocks[block]]
    tokens = swin.embed(x) if block == 0 else swin.layers[0].blocks[0](swin.embed(x))
    h, w = attention.grid
    assert (h, w) == (7, 5)
    normed = layer.norm1(tokens)
    values = layer.attn.qkv(normed).unflatten(-1, (3, 2, 4))[0, :, :, 2]  # (h w heads d)
    of_padding = layer.attn.qkv.bias.unflatten(0, (3, 2, 4))[2]  # (heads d)
    maps = torch.stack([map_of(attention, (row, column))[0] for row in range(h) for column in range(w)])  # (n m h w)
    mixed = torch.einsum("nmhw,hwmd->nmd", maps, values) + (1 - maps.sum((2, 3)))[..., None] * of_padding
    expected = layer.window_attention(normed)
    torch.testing.assert_close(layer.attn.proj(mixed.flatten(1)).view_as(expected), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("block", [0, 1])
def test_vils_maps_times_values_are_what_its_block_computes(block):
    """A block with sliding chunks, and one with full attention; without global tokens."""
    torch.manual_seed(0)
    vil = build("vil", **{**toys.FAMILIES["vil"], "num_globals": [0, 0], "depths": [1, 1]}).eval()
    x = torch.randn(1, 3, 56, 40)
    attention = vil.attention(x, block)
    stage = vil.stages[block]
    branch = stage.blocks[0][0]
    before = x if block == 0 else next((s.as_map(t, g) for s, t, g in vil.walk(x)))
    tokens, grid = stage.embed(before)
    normed, attn = branch.norm(tokens), branch.attn
    value = attn.split(attn.kv(normed), 2)[1] if block == 0 else attn.split(attn.qkv(normed), 3)[2]  # (1 m n d)
    h, w = attention.grid
    maps = torch.stack([map_of(attention, (row, column))[0] for row in range(h) for column in range(w)]).flatten(2)
    mixed = torch.einsum("nmk,mkd->nmd", maps, value[0]).flatten(1)
    torch.testing.assert_close(attn.proj(mixed)[None], attn(normed, grid), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cvts_maps_times_values_are_what_its_block_computes():
    cvt = backbone_of("cvt").double()
    x = torch.randn(1, 3, 64, 112).double()
    attention, block = cvt.attention(x, 0), cvt.stages[0].blocks[0]
    tokens = block.norm1(cvt.stages[0].embed(x))
    (_, _, value), _ = block.attn.query_key_value(tokens)
    h, w = attention.grid
    places = value.new_zeros(h * w, value.shape[1], value.shape[3])
    places[attention.keys.flatten()] = value.transpose(1, 2).flatten(0, 1)  # (n m d)
    maps = torch.stack([map_of(attention, (row, column))[0] for row in range(h) for column in range(w)]).flatten(2)
    mixed = torch.einsum("nmk,kmd->nmd", maps, places).flatten(1)  # (n c)
    out = block.attn.proj(mixed.T.unflatten(1, (h, w))[None])
    torch.testing.assert_close(out, block.attn(tokens))


@pytest.mark.parametrize("family", ["swin", "cvt", "vil", "vit"])
def test_the_map_moves_with_the_image(family):
    """What is drawn and the query move together, by whole windows and chunks."""
    backbone = backbone_of(family)
    if family == "vit":
        torch.nn.init.zeros_(backbone.model.pos_embed)
    step = 48
    image = torch.zeros(3, 3 * step, 3 * step)
    image[:, 60:80, 60:80] = torch.rand(3, 20, 20)
    here = attention_maps(backbone, image, (66, 70), block=0)
    there = attention_maps(backbone, image.roll((-step, step), (1, 2)), (66 + step, 70 - step), block=0)
    cells = here.shape[1] // 3
    assert np.ptp(here) > 0.01 * here.max()
    np.testing.assert_allclose(there, np.roll(here, (-cells, cells), (1, 2)), atol=1e-5)


def test_a_picture_is_seen_whole_and_points_are_in_its_pixels():
    backbone = backbone_of("swin")
    backbone.transform = EvaluationTransform(Recipe(global_size=32, eval_resize=36, eval_crop=32))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 400, 3), dtype=np.uint8))
    one = attention_maps(backbone, picture, (390, 10))
    several = attention_maps(backbone, picture, [(390, 10), (5, 190)])
    assert one.shape[1] * 2 == one.shape[2]  # twice as wide as high
    assert np.array_equal(several[0], one)
    assert np.count_nonzero(one[0, :, one.shape[2] // 2 :]) > np.count_nonzero(one[0, :, : one.shape[2] // 2])
    larger = attention_maps(backbone, picture, (390, 10), side=64)
    assert larger.shape[1:] == tuple(2 * side for side in one.shape[1:])
    with pytest.raises(ValueError, match=r"\[400, 10\] lies outside the image of 400 x 200 pixels"):
        attention_maps(backbone, picture, (400, 10))
    with pytest.raises(ValueError, match=r"query must be a point \[x, y\].*got \[1, 2, 3\]"):
        attention_maps(backbone, picture, [1, 2, 3])
    backbone.transform = None
    with pytest.raises(ValueError, match="nothing says how images are prepared"):
        attention_maps(backbone, picture, (1, 1))


def test_nothing_stays_behind():
    backbone = backbone_of("swin").train()
    image, state = torch.rand(3, 32, 32), torch.get_rng_state()
    attention_maps(backbone, image, (3, 3))
    assert backbone.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mask_holds_the_mass_and_no_more():
    weights = np.array([[0.05, 0.35, 0.1], [0.0, 0.3, 0.2]])
    assert heaviest(weights, 0.6).tolist() == [[False, True, False], [False, True, False]]
    assert heaviest(weights, 0.66).tolist() == [[False, True, False], [False, True, True]]
    assert heaviest(10 * weights, 0.6).sum() == 2  # of the mass that is there
    assert heaviest(weights, 1.0).sum() == 5


def test_heads_are_ranked_by_their_entropy():
    flat, sharp, between = np.full((2, 2), 0.25), np.array([[1.0, 0], [0, 0]]), np.array([[0.5, 0.5], [0, 0]])
    assert sharpest(np.stack([flat, sharp, between]), None) == [1, 2, 0]
    assert sharpest(np.stack([flat, sharp, between]), 1) == [1]


def test_the_figure_shows_the_query_where_it_is_and_the_mask_round_the_heaviest_places():
    maps = np.zeros((3, 2, 2))
    maps[0] = [[0.7, 0.1], [0.1, 0.1]]
    maps[1] = 0.25
    maps[2] = [[0.0, 0.0], [0.0, 1.0]]
    figure = draw_attention(torch.rand(3, 40, 60), maps, (10, 30), heads=2)
    picture, first, second, bars = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["query", "head 3", "head 1", "heads"]
    assert picture.lines[0].get_xydata().tolist() == [[10, 30]]
    corners = np.concatenate([line.get_xydata() for line in first.lines[:-1]])  # the last one is the query
    assert corners.min(0).tolist() == [29.5, 19.5]
    assert corners.max(0).tolist() == [59.5, 39.5]
    assert len(second.lines) == 1 + 4  # one cell
    widths = [patch.get_width() for patch in bars.patches]
    assert widths == sorted(widths)
    assert widths[-1] == pytest.approx(np.log(4))
