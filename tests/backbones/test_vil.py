from __future__ import annotations

import math

import golden_files
import pytest
import torch
import torch.nn.functional as F
import toys
from golden_files import relative_error

from esvit_pl.backbones.vil import ViL, from_released, to_released
from esvit_pl.backbones.vil_attention import FullAttention, SlidingAttention
from esvit_pl.ema import ema_update_, make_teacher
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import Progress

PUBLISHED = (
    "l1,h3,d96,n2,s1,g1,p4,f7,a0_l2,h6,d192,n2,s1,g1,p2,f7,a0_"
    "l3,h12,d384,n6,s0,g1,p2,f7,a0_l4,h24,d768,n2,s0,g0,p2,f7,a0"
)
TINY = {**toys.FAMILIES["vil"], "depths": [2, 1], "drop_path_rate": 0.0}


def tiny(**changes):
    torch.manual_seed(0)
    return ViL(**{**TINY, **changes})


def on_meta(**changes):
    with torch.device("meta"):
        return ViL(**changes)


def test_the_published_model_has_its_number_of_parameters():
    backbone = on_meta(**golden_files.vil_arch(PUBLISHED))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 27_569_352
    assert backbone.spec == on_meta().spec  # the signature carries the published model
    assert backbone.spec["drop_path_rate"] == 0.1


def test_index_tables_of_released_checkpoints_are_derived():
    state = tiny().state_dict()
    released = to_released(state)
    assert released["layer1.1.attn.relative_position_index"].shape == (9, 81)  # chunks of 3 and the 8 around
    assert released["layer2.1.attn.relative_position_index"].shape == (16, 16)  # 4 x 4 tokens at 32 px
    assert released["layer2.1.attn.relative_position_index"][0, :2].tolist() == [24, 23]
    assert released.keys() - state.keys() == {f"layer{i}.attn.relative_position_index" for i in ("1.1", "1.3", "2.1")}
    assert from_released(released).keys() == state.keys()
    assert to_released(tiny(positions=["absolute"] * 2).state_dict())["layer2.0.cls_pos_embed"].shape == (1, 0, 16)


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(32, 32, (4, 4)), (20, 36, (2, 4)), (23, 57, (2, 7)), (8, 8, (1, 1))]
)
@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_any_input_gives_its_regions(height, width, grid, position):
    features = tiny(positions=[position] * 2)(torch.randn(2, 3, height, width))
    assert features.grid == grid
    assert features.pooled.shape == (2, 16)
    assert features.regions.shape == (2, grid[0] * grid[1], 16)
    assert torch.allclose(features.pooled, features.regions.mean(1), atol=1e-6)


def test_rows_and_columns_that_fill_no_patch_are_left_out():
    backbone, x = tiny().eval(), torch.randn(1, 3, 32, 32)
    # 27 px: 6 patches of 4 and 3 px more
    assert torch.equal(backbone(x[..., :27, :27]).pooled, backbone(x[..., :24, :24]).pooled)


@torch.no_grad()
def test_images_without_a_token_in_the_last_stage_are_refused():
    with pytest.raises(ValueError, match="images of 8 px or more.*got 7 x 40"):
        tiny()(torch.randn(1, 3, 7, 40))


@pytest.mark.parametrize("side", [7, 8, 5, 29])
@pytest.mark.parametrize("num_globals", [0, 1, 2])
def test_absolute_positions_are_one_resized_picture(side, num_globals):
    """Rows fill the first half of the channels; with globals the picture is resampled even at the nominal size, 7."""
    backbone = tiny(positions=["absolute"] * 2, img_size=28, num_globals=[num_globals, 0]).double()
    embed = backbone.stages[0].embed
    rows, columns = embed.x_pos_embed.detach(), embed.y_pos_embed.detach()
    picture = torch.cat([rows[:, :, None].expand(-1, 7, 7, -1), columns[:, None].expand(-1, 7, 7, -1)], -1)
    scale = math.sqrt((num_globals + side * side) / 49)
    if math.floor(7 * scale) < side:  # at 29 rounding makes torch's picture one line short
        scale = math.nextafter(scale, math.inf)
    picture = F.interpolate(picture.permute(0, 3, 1, 2), scale_factor=scale, mode="bicubic")
    assert picture.shape[-2:] == (side, side)
    mine = embed.positions((side, side))
    torch.testing.assert_close(mine[:, num_globals:], picture.flatten(2).mT, rtol=0, atol=1e-10)
    if num_globals:
        assert torch.equal(mine[:, :num_globals], embed.cls_pos_embed)


def test_absolute_positions_of_a_map_that_is_not_square():
    embed = tiny(positions=["absolute"] * 2, num_globals=[0, 0]).stages[0].embed  # made for 8 x 8
    positions = embed.positions((8, 4))[0].unflatten(0, (8, 4))
    assert torch.equal(positions[..., :4], embed.x_pos_embed[0][:, None].expand(-1, 4, -1))
    assert torch.equal(positions, positions[:1].expand_as(positions)) is False
    assert torch.equal(positions[0, :, 4:], positions[5, :, 4:])  # columns do not know their row


def test_a_stage_starts_with_its_own_globals_and_drops_them_at_its_end():
    backbone = tiny(num_globals=[2, 1], sliding=[True, True])
    (first, tokens, grid), _, (second, last, _) = backbone.walk(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, 2 + 64, 8)
    assert last.shape == (2, 1 + 16, 16)
    assert torch.equal(first.as_map(tokens, grid)[:, :, 1, 2], tokens[:, 2 + 8 + 2])
    embedded, _ = second.embed(torch.randn(2, 8, 8, 8))
    assert torch.equal(embedded[0, 0], second.embed.cls_token[0, 0])  # not normed


def test_pooling_with_globals_in_the_last_stage():
    x = torch.randn(2, 3, 32, 32)
    backbone = tiny(num_globals=[1, 2]).eval()
    *_, (_, tokens, _) = backbone.walk(x)
    z = backbone.norm(tokens)
    features = backbone(x)
    assert torch.equal(features.pooled, z[:, 0])
    assert torch.equal(features.regions, z[:, 2:])
    assert features.grid == (4, 4)
    averaged = tiny(num_globals=[1, 2], avg_pool=True).eval()
    assert torch.equal(averaged(x).pooled, z.mean(1))


def test_last_blocks_by_hand():
    backbone, x = tiny().eval(), torch.randn(2, 3, 32, 32)
    (_, _, _), (_, early, _), (_, late, _) = backbone.walk(x)
    expected = [early[:, 0], backbone.norm(late).mean(1)]  # the first global, not normed; then the normed mean
    assert torch.allclose(backbone.last_blocks(x, 2), torch.cat(expected, 1), atol=1e-6)
    assert [backbone.last_blocks_width(n) for n in (1, 2, 3)] == [16, 24, 32]


def test_attention_of_full_blocks():
    backbone, x = tiny(num_globals=[1, 2], depths=[1, 2]).eval(), torch.randn(2, 3, 24, 32)
    for block in (-1, 1):
        attention = backbone.attention(x, block)
        assert attention.grid == (3, 4)
        assert attention.weights.shape == (2, 1, 2, 12, 14)
        assert attention.prefix.shape == (2, 2, 2, 14)
        assert torch.allclose(attention.weights.sum(-1), torch.ones(2, 1, 2, 12), atol=1e-5)
        assert torch.allclose(attention.prefix.sum(-1), torch.ones(2, 2, 2), atol=1e-5)
    assert not torch.allclose(backbone.attention(x, 1).weights, backbone.attention(x, 2).weights)


def test_attention_of_sliding_blocks_tells_which_chunks_a_token_sees():
    backbone = tiny(num_globals=[2, 0], depths=[1, 1]).eval()
    side = backbone.stages[0].blocks[0][0].attn.side
    x = torch.randn(1, 3, 4 * (3 * side + 1), 4 * side)
    attention = backbone.attention(x, 0)
    h, w = attention.grid
    assert (h, w) == (3 * side + 1, side)
    assert torch.allclose(attention.weights.sum(-1), torch.ones(()), atol=1e-5)
    assert attention.prefix.shape == (1, backbone.spec["num_heads"][0], 2, 2 + h * w)
    for chunk in range(4):
        rows = [row for row in range(h) if row // side == chunk]
        near = [row for row in range(h) if abs(row // side - chunk) <= 1]
        asks, sees = attention.queries[chunk].tolist(), attention.keys[chunk].tolist()
        assert sorted(set(asks) - {-1}) == [row * w + column for row in rows for column in range(w)]
        assert sees[:2] == [-1, -1]
        assert sorted(set(sees) - {-1}) == [row * w + column for row in near for column in range(w)]
        hidden = attention.keys[chunk, 2:] < 0
        assert attention.weights[0, chunk, :, :, 2:][..., hidden].abs().sum() == 0


def test_a_draw_of_each_attention_while_training_and_mode_0_in_evaluation():
    x = torch.randn(1, 3, 32, 32)
    random, all_around = tiny(mode=1), tiny(mode=0)
    all_around.load_state_dict(random.state_dict())
    seen = set()
    for seed in range(64):
        torch.manual_seed(seed)
        seen.add(tuple(random(x).pooled.flatten().tolist()))
    assert len(seen) > 30  # two attentions with 8 draws each: 64 pairs
    torch.manual_seed(0)
    first = random(x).pooled
    torch.manual_seed(0)
    assert torch.equal(first, random(x).pooled)
    assert torch.equal(random.eval()(x).pooled, all_around.eval()(x).pooled)
    assert torch.equal(all_around.train()(x).pooled, all_around.eval()(x).pooled)


def test_stochastic_depth_grows_linearly_to_its_rate_and_drops_whole_branches():
    backbone = tiny(drop_path_rate=0.4)
    pairs = [pair for stage in backbone.stages for pair in stage.blocks]
    assert [branch.drop_path.drop_prob for branch, _ in pairs] == pytest.approx([0.0, 0.2, 0.4])
    assert [mlp.drop_path.drop_prob for _, mlp in pairs] == pytest.approx([0.0, 0.2, 0.4])
    attention, mlp = pairs[-1]
    x = torch.randn(200, 4, 16)
    for branch, after in (
        (lambda: attention(x, (2, 2)), attention.attn(attention.norm(x), (2, 2))),
        (lambda: mlp(x), mlp.mlp(mlp.norm(x))),
    ):
        change = (branch() - x).flatten(1)
        dropped = change.abs().amax(1) == 0
        assert 50 < dropped.sum() < 110  # of 200 images
        assert torch.allclose(change[~dropped], after.flatten(1)[~dropped] / 0.6, atol=1e-5)


def test_initial_values():
    backbone = ViL(
        dims=[64, 128], depths=[1, 1], num_heads=[2, 4], patch_sizes=[4, 2], windows=[7, 7], num_globals=[4, 1],
        sliding=[True, False], positions=["absolute", "relative"], img_size=56,
    )  # fmt: skip
    first, second = backbone.stages
    attention, mlp = second.blocks[0]
    for weight in (attention.attn.qkv.weight, mlp.mlp.fc1.weight, first.embed.x_pos_embed, first.embed.cls_token):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert attention.attn.local_relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.2)
    assert attention.attn.qkv.bias.abs().max() == 0
    bound = (3 * 4 * 4) ** -0.5  # torch's default for the convolution: uniform within 1 / sqrt(inputs)
    assert first.embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert 0 < first.embed.proj.bias.abs().max() <= bound
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


def test_shared_projections_are_one_parameter_in_student_and_teacher():
    for share, count in ((True, 3), (False, 6)):
        backbone = tiny(share_projections=share)
        names = [name for name, _ in backbone.named_parameters() if name.startswith("layer1.1.attn")]
        assert sum(name.endswith("weight") for name in names) == count
        assert "layer1.1.attn.kv_global.weight" in backbone.state_dict()
        teacher = make_teacher(backbone)
        attention = teacher.stages[0].blocks[0][0].attn
        assert (attention.kv is attention.kv_global) == share
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter += 1
        ema_update_(teacher, backbone, 0.5)
        moved = teacher.state_dict()["layer1.1.attn.kv_global.bias"]
        assert torch.equal(moved, torch.full_like(moved, 0.5))  # once, not twice


@pytest.mark.parametrize("position", ["relative", "absolute"])
@pytest.mark.parametrize("share", [True, False])
def test_one_training_step_of_both_losses(position, share):
    backbone = tiny(mode=1, positions=[position] * 2, share_projections=share, drop_path_rate=0.1)
    objective = toys.objective()
    student = MultiCropNetwork(backbone, objective.heads(backbone.width, backbone.region_width))
    teacher = make_teacher(student)
    views = [torch.randn(2, 3, side, side) for side in (32, 32, 16, 16, 16)]
    with torch.no_grad():
        target = teacher(views[:2])
    losses = objective(student(views), target, {}, Progress(0, 10))
    assert {name: term.isfinite().item() for name, term in losses.terms.items()} == {"view": True, "region": True}
    losses.total.backward()
    # a stage's last block throws its globals away: what only they use has gradients of zero, and never none
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []
    silent = [name for name, p in backbone.named_parameters() if p.numel() and not p.grad.abs().sum()]
    expected = {"layer1.3.attn.g2g_relative_position_bias"} if position == "relative" else set()
    if not share:
        expected |= {
            f"layer1.3.attn.{name}_global.{part}" for name in ("query", "kv", "proj") for part in ("weight", "bias")
        }
    assert set(silent) == expected
    before = toys.state(student)
    torch.optim.AdamW(student.parameters(), lr=0.01).step()
    assert toys.largest_difference(before, toys.state(student)) > 0


def test_spec_builds_the_same_backbone_again():
    backbone = tiny(num_globals=(2, 1), mode=-1, norm_embed=False)
    assert backbone.spec["num_globals"] == [2, 1]
    again = ViL(**{key: value for key, value in backbone.spec.items() if key != "name"})
    again.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 24, 24)
    assert torch.equal(again(x).pooled, backbone(x).pooled)
    assert not any("norm_embed" in name for name in again.state_dict())


def test_kinds_of_attention_follow_the_stages():
    backbone = tiny(sliding=[False, True])
    kinds = [[type(branch.attn) for branch, _ in stage.blocks] for stage in backbone.stages]
    assert kinds == [[FullAttention, FullAttention], [SlidingAttention]]
    assert backbone.stages[0].blocks[0][0].attn.native == 8
    assert backbone.patch_size == 8


def test_modes_only_differ_by_what_a_local_sees():
    x = torch.randn(1, 3, 32, 32)
    around, own = (tiny(mode=mode).eval()(x).pooled for mode in (0, -1))
    assert relative_error(own, around) > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding": [True]}, r"one of sliding for each stage; got dims=\[8, 16\], sliding=\[True\]"),
        ({"num_globals": [-1, 0]}, r"num_globals of 0 or more, got \[-1, 0\]"),
        ({"positions": ["relative", "none"]}, "positions 'relative' or 'absolute', got 'none'"),
        ({"dims": [7, 16], "positions": ["absolute"] * 2}, "stage 0 is 7 wide; absolute positions need an even width"),
        ({"img_size": 7}, r"img_size of 8 px or more with patch_sizes \[4, 2\], got 7"),
        ({"mode": -2}, "ViL needs mode 0 .*, got -2"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny(**change)


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_bfloat16_autocast_is_near_float32(position):
    backbone, x = tiny(positions=[position] * 2, mode=0), torch.randn(2, 3, 28, 28)
    reference = backbone(x).regions
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regions = backbone(x).regions
    assert relative_error(regions.float(), reference) < 0.03
    regions.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())
