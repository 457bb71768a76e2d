"""Weights of any code: whatever wraps them, the backbone inside is found and computes what it computed there."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import toys

from esvit_pl.backbones import build, cvt, swin, vil
from esvit_pl.checkpoints import load_backbone, read_checkpoint
from esvit_pl.checkpoints.checkpoint import under

TO_RELEASED = {"swin": swin.to_released, "cvt": cvt.to_released, "vil": vil.to_released}


def small(seed: int = 0):
    torch.manual_seed(seed)
    return build("swin", embed_dim=8, depths=[1, 2], num_heads=[1, 2])


def head(prefix: str = ""):
    return {f"{prefix}fc.weight": torch.zeros(5, 16), f"{prefix}fc.bias": torch.zeros(5)}


ONE = (
    "",
    "model.",
    "encoder.",
    "backbone.",
    "module.",
    "network.",
    "trunk.",
    "_orig_mod.",
    "module.encoder.",
    "net.0.",
)
STUDENTS = (
    "student.",
    "base_encoder.",
    "encoder_q.",
    "module.encoder_q.",
    "online_network.",
    "student.backbone.module.",
)
TEACHERS = (
    "teacher.backbone.",
    "model_ema.",
    "momentum_encoder.",
    "module.teacher.model._orig_mod.",
    "target_encoder.",
)
CONTAINERS = (
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    lambda state: {"model": state, "args": None},
    lambda state: {"checkpoint": {"state_dict": {"model": state}}},
)


@pytest.mark.parametrize("names", ["released", "timm"])
def test_every_prefix_in_every_container(tmp_path, names):
    """All combinations; the table of docs/checkpoints.md."""
    backbone = small()
    weights = backbone.state_dict() if names == "timm" else swin.to_released(backbone.state_dict())
    cases = [
        (kind, prefix, container)
        for kind, prefixes in (("backbone", ONE), ("student", STUDENTS), ("teacher", TEACHERS))
        for prefix in prefixes
        for container in CONTAINERS
    ]
    for kind, prefix, container in cases:
        torch.save(container({**under(prefix, weights), **head()}), tmp_path / "a.pth")
        found = read_checkpoint(tmp_path / "a.pth")
        assert list(found.networks) == [kind], prefix
        assert toys.largest_difference(found.networks[kind], under("backbone.", toys.state(backbone))) == 0, prefix
        assert [name.rpartition("fc.")[2] for name in found.left_out] == ["weight", "bias"], prefix


@pytest.mark.parametrize("name", TO_RELEASED)
def test_every_family_in_the_middle_of_other_names(tmp_path, name):
    """Compiled block by block, and wrapped for distributed training inside."""
    backbone = build(name, **toys.FAMILIES[name]).eval().requires_grad_(False)
    wrapped = {
        re.sub(r"(blocks|layers)\.(\d+)\.", r"\1.\2._orig_mod.module.", key): value
        for key, value in TO_RELEASED[name](backbone.state_dict()).items()
    }
    torch.save({"model": under("encoder._fsdp_wrapped_module.", wrapped)}, tmp_path / "a.pth")
    again = read_checkpoint(tmp_path / "a.pth").networks["backbone"]
    assert toys.largest_difference(again, under("backbone.", toys.state(backbone))) == 0


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("student.", "teacher."),
        ("module.encoder_q.", "module.encoder_k."),
        ("base_encoder.", "momentum_encoder."),
        ("online_network.backbone.", "target_network.backbone."),
        ("backbone.", "momentum_backbone."),
        ("model.", "model_ema.module."),
        ("", "ema."),
    ],
)
def test_where_two_networks_fit_network_decides(tmp_path, student, teacher):
    mine, average = small(0), small(1)
    content = {**under(student, mine.state_dict()), **under(teacher, average.state_dict()), **head("projector.")}
    torch.save({"state_dict": content}, tmp_path / "a.pth")
    for network, backbone in (("student", mine), ("teacher", average), ("encoder", average)):
        again = load_backbone(tmp_path / "a.pth", network=network)
        assert toys.largest_difference(toys.state(again), toys.state(backbone)) == 0


def test_where_nothing_decides_it_is_said(tmp_path):
    torch.save({**under("a.", small().state_dict()), **under("b.", small().state_dict())}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"a.pth holds 2 backbones, and nothing says which one is meant .*: a\.\* , b\.\*"
    ):
        read_checkpoint(tmp_path / "a.pth")
    torch.save(under("teacher.", small().state_dict()), tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds no student; its networks are teacher"):
        load_backbone(tmp_path / "b.pth", network="student")


# -- families of others


def original(name: str, state):
    """Names and layouts of the authors, where timm's differ."""
    if name == "test_convnext2":
        state = {re.sub(r"\.blocks\.(\d+)\.", r".\1.", key): value for key, value in state.items()}
        state = {re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key): v for key, v in state.items()}
        state = {re.sub(r"^stem\.", "downsample_layers.0.", key): value for key, value in state.items()}
        renames = {"conv_dw": "dwconv", "mlp.fc": "pwconv", "mlp.grn.bias": "grn.beta", "mlp.grn.weight": "grn.gamma"}
        for timms, theirs in renames.items():
            state = {key.replace(timms, theirs): value for key, value in state.items()}
        state = {re.sub(r"^head\.norm", "norm", key): value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("test_convnext", "teacher.backbone."), ("test_convnext2", ""), ("test_resnet", ""), ("test_vit3", "trunk.")],
)
def test_with_a_backbone_given_any_timm_model_is_found(tmp_path, name, prefix):
    model = timm.create_model(name, num_classes=5).eval()
    torch.save({"state_dict": under(prefix, original(name, model.state_dict()))}, tmp_path / "a.pth")
    backbone = load_backbone(tmp_path / "a.pth", backbone={"name": name, "img_size": 96})
    x = torch.randn(2, 3, 160, 160)
    mine = {key: value for key, value in model.state_dict().items() if key in backbone.model.state_dict()}
    assert toys.largest_difference(toys.state(backbone.model), mine) == 0
    assert backbone(x).pooled.shape == (2, backbone.width)


@torch.no_grad()
@pytest.mark.parametrize(("registers", "chunked"), [(0, False), (4, True)])
def test_dinov2_as_its_authors_publish_it(tmp_path, registers, chunked):
    """Patches of 14 px, LayerScale, registers, a table for 518 px, blocks in chunks; nothing needs to be given."""
    torch.manual_seed(0)
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    model = timm.create_model(name, num_classes=0, img_size=98, dynamic_img_size=True).eval()
    state = model.state_dict()
    state["mask_token"] = torch.zeros(1, 384)
    if registers:  # the authors add a position to the class token, which timm has added already
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], dim=1)
    if chunked:
        state = {
            re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 6}.{m[1]}.", k): v for k, v in state.items()
        }
    torch.save({"teacher": under("backbone.", state)}, tmp_path / "a.pth")
    backbone = load_backbone(tmp_path / "a.pth")
    assert (backbone.spec["name"], backbone.spec["img_size"]) == (name, 98)
    x = torch.randn(1, 3, 98, 98)
    assert torch.allclose(backbone(x).pooled, model(x), atol=1e-6)
    given = load_backbone(tmp_path / "a.pth", backbone={"name": name, "img_size": 224})
    assert torch.equal(given(x).pooled, backbone(x).pooled)


def test_a_vit_of_another_depth_loads_as_the_message_says(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0).eval()
    torch.save({"model": under("encoder.", model.state_dict())}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"backbone=timm backbone.name=vit_tiny_patch16_224 \+backbone.depth=2$"):
        load_backbone(tmp_path / "a.pth")
    backbone = load_backbone(tmp_path / "a.pth", backbone={"name": "vit_tiny_patch16_224", "depth": 2})
    assert toys.largest_difference(toys.state(backbone.model), toys.state(model)) == 0


def test_the_family_that_fits_is_named(tmp_path):
    model = timm.create_model("convnext_atto", num_classes=10)
    torch.save(under("module.", model.state_dict()), tmp_path / "a.pth")
    with pytest.raises(
        ValueError,
        match="look like those of timm.s convnext_base, .*: give the right one, backbone=timm backbone.name=NAME",
    ):
        read_checkpoint(tmp_path / "a.pth")


def test_another_backbone_than_the_one_given_is_told_by_names(tmp_path):
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"backbone=test_efficientnet: \d+ of the \d+ names .* missing.*file has stem.0"
    ):
        load_backbone(tmp_path / "a.pth", backbone={"name": "test_efficientnet"})
    torch.save(timm.create_model("convnext_atto", dims=(20, 40, 80, 160)).state_dict(), tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"does not fit:\n  of another shape: model.stem.0.weight \(20, 3, 4, 4\)"):
        load_backbone(tmp_path / "b.pth", backbone={"name": "convnext_atto"})
