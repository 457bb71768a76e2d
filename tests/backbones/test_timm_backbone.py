from __future__ import annotations

import re

import pytest
import timm
import torch
import torchvision
from timm.layers import DropPath, convert_sync_batchnorm
from torch import nn

from esvit_pl.backbones import Backbone, TimmBackbone, build
from esvit_pl.backbones.timm_errors import OTHERS
from esvit_pl.backbones.timm_features import grid_of
from esvit_pl.backbones.timm_study import study
from esvit_pl.ema import check_apart, ema_update_, make_teacher
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import EsViTObjective
from esvit_pl.objectives.interface import Progress

NARROW = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
# One small model of each of timm's families -> arguments that make it smaller, and its map at 97 px.
FAMILIES = {
    "test_vit": ({}, 7),
    "deit_tiny_distilled_patch16_224": ({"depth": 2, "embed_dim": 48}, 7),
    "eva02_tiny_patch14_224": ({"depth": 2, "embed_dim": 48}, 7),
    "xcit_nano_12_p8_224": ({"depth": 2, "embed_dim": 32}, 13),
    "swin_tiny_patch4_window7_224": (NARROW, 4),
    "swinv2_tiny_window8_256": (NARROW, 4),
    "swinv2_cr_tiny_224": (NARROW, 3),
    "tiny_vit_5m_224": ({"embed_dims": [16, 32, 40, 80], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}, 4),
    "pvt_v2_b0": ({"depths": [1, 1, 1, 1]}, 4),
    "test_convnext2": ({}, 3),
    "test_mambaout": ({}, 4),
    "inception_next_atto": ({"depths": [1, 1, 1, 1]}, 3),
    "edgenext_xx_small": ({}, 3),
    "test_resnet": ({}, 4),
    "resnetv2_18": ({"channels": [16, 32, 48, 64], "stem_chs": 16}, 4),
    "resnetv2_50": ({"preact": False, "layers": [1] * 4, "channels": [16, 32, 48, 64], "width_factor": 2}, 4),
    "skresnet50d": (
        {
            **{"layers": [1] * 4, "channels": [8, 16, 24, 32], "stem_width": 4},
            "block_args": {"sk_kwargs": {"split_input": False, "kernel_size": [3, 3]}},
        },
        4,
    ),
    "vit_tiny_patch16_224": (
        {"depth": 2, "embed_dim": 48, "num_heads": 2, "patch_size": 7, "block_fn": "batch_norm_mlp"},
        14,
    ),
    "test_byobnet": ({}, 4),
    "test_nfnet": ({}, 4),
    "regnetx_002": ({}, 4),
    "dla46x_c": ({}, 4),
    "ese_vovnet19b_slim_dw": ({}, 3),
    "test_efficientnet": ({}, 4),
    "lcnet_035": ({}, 4),
    "ghostnet_050": ({}, 4),
    "efficientvit_b0": ({}, 4),
    "starnet_s050": ({}, 4),
}
# The smallest model of each, at its full size.
LONG = [
    "convmixer_768_32", "convnext_atto_rms", "convnextv2_atto", "cpubone_nano", "cs3darknet_focus_s", "csatv2",
    "cspnext_tiny", "davit_tiny", "deit3_small_patch16_224", "deit_tiny_patch16_224", "densenet121", "dla46x_c",
    "dpn48b", "edgenext_xx_small", "efficientnet_b0", "efficientnet_lite0", "efficientvim_m1", "efficientvit_b0",
    "efficientvit_m0", "ese_vovnet19b_slim_dw", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hrnet_w18_small", "iformer_t",
    "inception_next_atto", "inception_v3", "lcnet_035", "lcnetv2_small", "legacy_seresnet18", "legacy_xception",
    "lowformer_b0", "mobilenetv3_small_100", "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap",
    "nextvit_small", "poolformer_s12", "pvt_v2_b0", "rdnet_tiny", "regnety_002", "repghostnet_050", "repvit_m1",
    "res2next50", "resnest14d", "resnet18", "resnet50", "resnetv2_18", "rexnet_100", "sam2_hiera_tiny",
    "selecsls42", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224", "swinv2_tiny_window8_256", "test_byobnet", "test_efficientnet", "test_mambaout",
    "test_nfnet", "test_resnet", "test_vit2", "test_vit3", "test_vit4", "tiny_vit_5m_224", "tresnet_m",
    "twins_svt_small", "vgg11", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224",
    "vitamin_small_224", "xception41p", "xcit_nano_12_p8_224",
]  # fmt: skip
SETTINGS = {"num_prototypes": 32, "hidden_dim": 16, "out_dim": 8}


def small(name: str, **overrides) -> Backbone:
    torch.manual_seed(0)
    return build(name, **{**FAMILIES[name][0], **overrides})


def check_shapes(backbone: Backbone) -> dict[int, tuple[int, int]]:
    """Side -> map, after comparing everything that has a shape."""
    grids = {}
    backbone.eval()
    for side in (224, 96, 97):
        with torch.no_grad():
            pooled, regions, grid = backbone(torch.randn(1, 3, side, side))
        assert pooled.shape == (1, backbone.width)
        assert regions.shape == (1, grid[0] * grid[1], backbone.region_width)
        assert pooled.isfinite().all()
        assert regions.isfinite().all()
        grids[side] = grid
    assert grids[96] <= grids[97] < grids[224]
    x = torch.randn(1, 3, 97, 97)
    with torch.no_grad():
        blocks = backbone.last_blocks(x, 2)
        assert blocks.shape == (1, backbone.last_blocks_width(2))
        features, again = backbone.features_and_blocks(x, 2)
        assert torch.equal(blocks, again)
        for mine, other in zip(features, backbone(x), strict=True):
            torch.testing.assert_close(mine, other)
        torch.testing.assert_close(blocks[:, -backbone.width :], features.pooled)
    return grids


def check_steps(backbone: Backbone) -> None:
    """A training step on crops of 224, 96 and 97 px, then two on small ones."""
    objective = EsViTObjective(**SETTINGS)
    student = MultiCropNetwork(backbone, objective.heads(backbone.width, backbone.region_width)).train()
    teacher = make_teacher(student)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1e-3)
    views = [torch.randn(2, 3, side, side) for side in (224, 224, 96, 97)]
    for step, crops in enumerate((views, views[2:], views[2:])):
        with torch.no_grad():
            seen = teacher(crops[:2])
        loss = objective(student(crops), seen, {}, Progress(step, 3)).total
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            silent = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
            assert not silent, "parameters without a gradient stop distributed training"
        optimizer.step()
        mine = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
        before = [parameter.clone() for parameter in teacher.parameters()]
        ema_update_(teacher, student, 0.9)
        # every buffer is what the teacher's own forward left there
        assert all(torch.equal(buffer, mine[name]) for name, buffer in teacher.named_buffers())
        assert not all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))
    check_apart(teacher, student)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_its_regions_and_takes_a_training_step(name):
    backbone = small(name)
    assert check_shapes(backbone)[97] == (FAMILIES[name][1],) * 2
    check_steps(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_the_long_list(name):
    torch.manual_seed(0)
    backbone = build(name)
    check_shapes(backbone)
    check_steps(backbone)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("side", [224, 96])
def test_the_pooled_feature_is_timms_own(name, side):
    backbone = small(name).eval()
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(backbone(x).pooled, backbone.model(x))


@torch.no_grad()
def test_a_wide_resnet_is_torchvision_s_with_more_channels():
    """timm's own name for it is of another family: with norms after convolutions, and no wider, it is torchvision's."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    theirs.fc = nn.Identity()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    ours = build("resnetv2_50", preact=False).eval()
    names = {
        "stem.conv": "conv1",
        "stem.norm": "bn1",
        "downsample.conv": "downsample.0",
        "downsample.norm": "downsample.1",
    }

    def renamed(key: str) -> str:
        for mine, its in names.items():
            key = key.replace(mine, its)
        return re.sub(r"stages\.(\d)\.blocks", lambda stage: f"layer{int(stage[1]) + 1}", key).replace("norm", "bn")

    weights = theirs.state_dict()
    ours.model.load_state_dict({key: weights.pop(renamed(key)) for key in ours.model.state_dict()})
    assert not weights
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x).pooled, theirs(x))
    with torch.device("meta"):
        wide = build("resnetv2_50", preact=False, width_factor=5)
    for narrow, wider in zip(ours.parameters(), wide.parameters(), strict=True):
        channels, *rest = narrow.shape
        if rest and rest[0] != 3:  # of images
            rest[0] *= 5
        assert tuple(wider.shape) == (5 * channels, *rest)


@torch.no_grad()
def test_a_side_that_is_no_multiple_is_padded_with_zeros():
    backbone = small("test_vit").eval()
    x = torch.randn(1, 3, 90, 97)
    full = torch.zeros(1, 3, 96, 112)
    full[:, :, :90, :97] = x
    features = backbone(x)
    assert features.grid == (6, 7)
    torch.testing.assert_close(features.pooled, backbone.model(full))
    assert small("test_resnet").traits.multiple == 1  # convolutions pad for themselves


@torch.no_grad()
def test_prefix_tokens_are_no_regions_and_the_mean_can_be_asked_for():
    backbone = small("deit_tiny_distilled_patch16_224").eval()
    x = torch.randn(2, 3, 96, 96)
    tokens = backbone.model.forward_features(x)  # class token, distillation token, 36 regions
    assert tokens.shape == (2, 38, 48)
    features = backbone(x)
    assert torch.equal(features.pooled, tokens[:, 0])
    assert torch.equal(features.regions, tokens[:, 2:])
    mean = small("deit_tiny_distilled_patch16_224", pool="mean").eval()
    torch.testing.assert_close(mean(x).pooled, tokens[:, 2:].mean(1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_convnext2", "test_mambaout"])
def test_a_norm_that_timm_keeps_in_the_head_norms_every_region(name):
    backbone = small(name).eval()
    pooled, regions, _ = backbone(torch.randn(2, 3, 96, 96))
    torch.testing.assert_close(regions.mean(-1), torch.zeros(2, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(regions.var(-1, correction=0), torch.ones(2, 9), atol=1e-2, rtol=0)
    torch.testing.assert_close(pooled, regions.mean(1))


@torch.no_grad()
def test_what_widens_the_map_for_a_classifier_is_left_out_and_stands_still():
    backbone = small("test_efficientnet").eval()
    head = {name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad}
    assert head == {"conv_head.weight", "bn2.weight", "bn2.bias"}
    x = torch.randn(1, 3, 96, 96)
    last = backbone.model.blocks(backbone.model.bn1(backbone.model.conv_stem(x)))
    torch.testing.assert_close(backbone(x).regions, last.flatten(2).mT)
    assert set(backbone.state_dict()) == {f"model.{name}" for name in backbone.model.state_dict()}


@torch.no_grad()
def test_last_blocks_of_a_vit_are_normed_class_tokens_and_of_stages_means_of_maps():
    vit = small("test_vit").eval()
    x = torch.randn(2, 3, 96, 96)
    tokens, after = vit.model._pos_embed(vit.model.patch_embed(x)), []
    for block in vit.model.blocks:
        tokens = block(tokens)
        after.append(vit.model.norm(tokens)[:, 0])
    torch.testing.assert_close(vit.last_blocks(x, 3), torch.cat(after[-3:], dim=1))
    assert vit.last_blocks_width(3) == 3 * 64

    net = small("test_resnet").eval()
    stem = net.model.maxpool(net.model.act1(net.model.bn1(net.model.conv1(x))))
    third = net.model.layer3(net.model.layer2(net.model.layer1(stem)))
    fourth = net.model.layer4(third)
    expected = torch.cat([third.mean((2, 3)), fourth.mean((2, 3))], dim=1)
    torch.testing.assert_close(net.last_blocks(x, 2), expected)
    assert net.last_blocks_width(2) == expected.shape[1]
    with pytest.raises(ValueError, match="between 1 and the backbone's 5 blocks, got 6"):
        net.last_blocks(x, 6)


@torch.no_grad()
@pytest.mark.parametrize(("name", "prefix"), [("test_vit", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_attention_weights_are_those_that_the_block_uses(name, prefix):
    backbone = small(name).eval()
    x = torch.randn(2, 3, 96, 80)
    attention = backbone.attention(x, block=-2)
    assert attention.grid == (6, 5)
    weights = torch.cat([attention.prefix, attention.weights[:, 0]], dim=2)
    assert attention.queries.tolist() == [list(range(30))]
    assert attention.keys.tolist() == [[-1] * prefix + list(range(30))]
    attn = backbone.model.blocks[-2].attn
    assert weights.shape == (2, attn.num_heads, prefix + 30, prefix + 30)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    seen = []
    with attn.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output])):
        backbone(x)
    value = attn.qkv(seen[0]).unflatten(-1, (3, attn.num_heads, -1))[:, :, 2].transpose(1, 2)
    torch.testing.assert_close(attn.proj((weights @ value).transpose(1, 2).flatten(2)), seen[1])
    with pytest.raises(ValueError, match=f"between -{len(backbone.model.blocks)} and .*, got 50"):
        backbone.attention(x, 50)


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_families_without_plain_attention_name_those_that_have_it(name):
    with pytest.raises(NotImplementedError, match=f"{name} has no attention weights to show; Swin, CvT, ViL, ViT"):
        small(name).attention(torch.randn(1, 3, 96, 96))


@torch.no_grad()
def test_windows_never_shrink_on_small_crops():
    for name in ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"):
        backbone = small(name).eval()
        windows = [block.window_size for stage in backbone.model.layers for block in stage.blocks]
        backbone(torch.randn(1, 3, 96, 96))
        assert windows == [block.window_size for stage in backbone.model.layers for block in stage.blocks]
        assert windows[0] == ((7, 7) if name.startswith("swin_") else (8, 8))


def test_spec_builds_the_same_backbone_again():
    for name, changes in {"test_vit": {"depth": 2, "pool": "mean", "drop_path_rate": 0.1}, "lcnet_035": {}}.items():
        backbone = small(name, **changes).eval()
        assert backbone.spec["name"] == name
        again = build(**backbone.spec).eval()
        again.load_state_dict(backbone.state_dict())
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(again(x).pooled, backbone(x).pooled)


def test_the_meta_device_gets_the_same_parameters_and_costs_no_numbers():
    with torch.device("meta"):
        backbone = small("test_vit", drop_path_rate=0.1)
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}
    shapes = {name: parameter.shape for name, parameter in small("test_vit").named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in backbone.named_parameters()}


def test_studying_a_model_draws_no_random_numbers():
    study.cache_clear()
    weights = [small("test_resnet").state_dict() for _ in range(2)]  # studied, then remembered
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_mean_and_std_are_those_of_the_weights_of_that_name():
    with torch.device("meta"):
        dino, augreg = (build(f"vit_small_patch16_224.{tag}", depth=1) for tag in ("dino", "augreg_in1k"))
        grey = build("test_vit", in_chans=1)
    assert (dino.mean, dino.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (augreg.mean, augreg.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert dino.model.norm.eps == 1e-6  # DINO's
    assert (len(grey.mean), grey.spec["in_chans"]) == (1, 1)
    assert grey(torch.zeros(1, 1, 32, 32, device="meta")).grid == (2, 2)
    assert Backbone.transform is None


@pytest.mark.parametrize(("name", "patch"), [
    ("test_vit", 16), ("swin_tiny_patch4_window7_224", 4), ("test_convnext2", 32), ("test_resnet", 8),
])  # fmt: skip
@torch.no_grad()
def test_crops_may_be_as_small_as_patch_size(name, patch):
    backbone = small(name).eval()
    assert backbone.patch_size == patch
    assert backbone(torch.randn(2, 3, patch, patch)).grid == (1, 1)


@pytest.mark.parametrize(("pixels", "count", "stride", "grid"), [
    ((97, 97), 9, 32, (3, 3)), ((97, 97), 16, 32, (4, 4)), ((96, 64), 6, 32, (3, 2)), ((50, 33), 6, 20, (3, 2)),
])  # fmt: skip
def test_grid_by_hand(pixels, count, stride, grid):
    assert grid_of(count, pixels, stride) == grid
    with pytest.raises(ValueError, match="5 tokens do not make a map of"):
        grid_of(5, pixels, stride)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext2", "test_nfnet"])
def test_the_teacher_has_no_stochastic_depth(name):
    student = small(name, drop_path_rate=0.5).train()
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.2)  # some families start with branches of zero, which nobody would miss
    assert any(module.drop_prob > 0 for module in student.modules() if isinstance(module, DropPath))
    teacher = make_teacher(student)
    x = torch.randn(4, 3, 64, 64)
    assert torch.equal(teacher(x).pooled, teacher(x).pooled)
    assert not torch.equal(student(x).pooled, student(x).pooled)


@pytest.mark.parametrize("name", OTHERS)
def test_what_errors_recommend_exists(name):
    assert timm.is_model(name)
    assert name in LONG  # where it is built and trained


@pytest.mark.parametrize("name", [
    "beit_base_patch16_224", "cait_xxs24_224", "mixer_s32_224", "pit_ti_224", "levit_128s", "hiera_tiny_224",
    "nest_tiny", "coat_tiny", "maxvit_pico_rw_256", "test_vit_relpos",
])  # fmt: skip
def test_models_for_one_size_are_refused_with_the_reason_and_others(name):
    wanted = rf"timm's {name} cannot be a backbone for crops of several sizes: at \d+ x \d+ px .*Others can, such as"
    with pytest.raises(ValueError, match=wanted):
        build(name)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("convnextv2_ato", {}, "'convnextv2_ato'; did you mean convnextv2_at.* It is no model of timm .* either"),
    ("swim", {}, "'swim'; did you mean swin"),
    ("vit_small_patch16_224.dinno", {}, "no 'vit_.*.dinno'; wanted is vit_small_patch16_224, or one of .*dino"),
    ("esvit_swin_tiny_w7", {}, "a backbone of our own under a name for timm; use backbone=swin_tiny_w7"),
    ("vgg11", {"drop_path_rate": 0.1}, "vgg11 has no stochastic depth; wanted is drop_path_rate=0, got 0.1"),
    ("test_resnet", {"pool": "token"}, "no class token, so pool='token' cannot be; use pool='mean'"),
    ("test_vit", {"pool": "max"}, "needs pool 'token', 'mean' or null, got 'max'"),
    ("test_vit", {"drop_path_rate": 1.0}, r"drop_path_rate in \[0, 1\), got 1.0"),
    ("test_vit", {"img_size": 0}, "whole number img_size of 1 or more, got 0"),
    ("test_resnet", {"patch_size": 8}, "timm cannot build test_resnet with {'patch_size': 8}: TypeError: .*patch_size"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        build(name, **change)


def test_the_teachers_batch_norm_is_its_own():
    backbone = small("test_resnet").train()
    teacher = make_teacher(backbone)
    backbone(torch.randn(4, 3, 64, 64))
    norms = [
        (mine, its)
        for mine, its in zip(teacher.modules(), backbone.modules(), strict=True)
        if isinstance(mine, nn.BatchNorm2d)
    ]
    assert all(mine.num_batches_tracked == 0 and its.num_batches_tracked == 1 for mine, its in norms)
    assert isinstance(teacher, TimmBackbone)


@torch.no_grad()
def test_synchronised_batch_norm_may_not_lose_activations():
    x = torch.randn(1, 3, 64, 64)
    plain, fused = small("test_resnet").eval(), small("test_efficientnet").eval()
    expected = plain(x).pooled, fused(x).pooled
    torch.testing.assert_close(nn.SyncBatchNorm.convert_sync_batchnorm(plain)(x).pooled, expected[0])
    torch.testing.assert_close(convert_sync_batchnorm(small("test_efficientnet").eval())(x).pooled, expected[1])
    with pytest.raises(ValueError, match="lost the activations of timm's test_efficientnet; train with"):
        nn.SyncBatchNorm.convert_sync_batchnorm(fused)(x)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_stage_has_a_region_map(name):
    backbone = small(name, pool="mean").eval()
    x = torch.randn(1, 3, 97, 97)
    maps = [backbone.stage_regions(x, stage) for stage in range(backbone.num_stages)]
    features = backbone(x)
    assert torch.equal(maps[-1].regions, features.regions)
    assert maps[-1].grid == features.grid
    assert all(part.regions.shape[1] == part.grid[0] * part.grid[1] for part in maps)
    assert [part.grid for part in maps] == sorted((part.grid for part in maps), reverse=True)
    pooled = torch.cat([part.regions.mean(1) for part in maps], dim=1)
    torch.testing.assert_close(pooled, backbone.last_blocks(x, backbone.num_stages))
    for seen, expected in zip(backbone.block_features(x), maps, strict=True):
        assert seen.grid == expected.grid
        torch.testing.assert_close(seen.regions, expected.regions)
        torch.testing.assert_close(seen.pooled, expected.regions.mean(1))
