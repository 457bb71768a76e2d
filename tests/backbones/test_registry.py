from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from esvit_pl.backbones import FAMILIES, ModelForTimm, build
from esvit_pl.backbones.registry import SIZES, default_cfgs

CONF = Path(__file__).parents[2] / "conf" / "backbone"
TINY = {
    "esvit_swin_micro_32px": {"embed_dim": 8, "num_heads": (1, 2), "window": 4},
    "esvit_cvt_tiny_w7": {"dims": (8, 16), "depths": (1, 1), "num_heads": (1, 2), "windows": (4, 4)},
    "esvit_vil_tiny": {
        "dims": (8, 16),
        "depths": (1, 1),
        "num_heads": (1, 2),
        "patch_sizes": (4, 2),
        "windows": (3, 3),
        "num_globals": (1, 1),
        "sliding": (True, False),
        "positions": ("relative", "relative"),
        "img_size": 32,
    },
}


def test_every_config_of_our_families_is_a_size_and_no_other():
    ours = {path.stem for path in CONF.glob("*.yaml") if path.stem.startswith(("swin_", "cvt_", "vil_"))}
    assert set(SIZES) == ours
    assert {spec["name"] for spec in SIZES.values()} == set(FAMILIES) - {"igpt"}  # which has no layer that sees pixels


def test_every_size_is_registered_once_under_our_prefix():
    assert set(timm.list_models("esvit_*")) == {f"esvit_{size}" for size in SIZES}
    assert timm.list_models(module="registry") == timm.list_models("esvit_*")
    assert timm.data.resolve_data_config(pretrained_cfg=default_cfgs["esvit_cvt_tiny_w7"].default.to_dict()) == {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 0.875,
        "crop_mode": "center",
    }


@pytest.mark.parametrize("name", TINY)
def test_pooled_feature_regions_and_logits_are_the_backbones(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, drop_path_rate=0.1, **TINY[name]).eval()
    assert model.backbone.spec["drop_path_rate"] == 0.1
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        pooled, regions, grid = model.backbone(x)
        tokens = model.forward_features(x)
        assert torch.equal(tokens[:, 0], pooled)
        assert torch.equal(tokens[:, 1:], regions)
        assert tokens.shape == (2, 1 + grid[0] * grid[1], model.num_features)
        assert torch.equal(model(x), model.head(pooled))
        assert torch.equal(model.forward_head(tokens, pre_logits=True), pooled)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3)
        assert torch.equal(model.forward_head(tokens, pre_logits=True), regions.mean(1))
        model.reset_classifier(0, "")
        assert torch.equal(model(x), tokens)
    assert (model.num_classes, model.global_pool) == (0, "")


def test_weights_come_by_timms_own_loading(tmp_path):
    """Without its classifier into a model with another one, and three channels into one: timm sums their kernels."""
    name, sizes = next(iter(TINY.items()))
    source = timm.create_model(name, num_classes=0, **sizes)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4, in_chans=1, **sizes)
    mine, theirs = model.backbone.state_dict(), source.backbone.state_dict()
    summed = theirs.pop("patch_embed.proj.weight").sum(1, keepdim=True)
    torch.testing.assert_close(mine.pop("patch_embed.proj.weight"), summed)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert model.in_chans == 1


@pytest.mark.parametrize("size", [size for size in SIZES if "large" not in size])
def test_every_size_builds_as_its_config_says(size):
    with torch.device("meta"):
        model = timm.create_model(f"esvit_{size}")
    assert model.backbone.spec == SIZES[size]
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.shape[1] == 3


def test_what_is_refused():
    backbone = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    with pytest.raises(ValueError, match="global_pool must be 'token', 'avg' or '', got 'max'"):
        ModelForTimm(backbone, global_pool="max")
    with pytest.raises(ValueError, match="leaves nothing to classify; got num_classes=3, wanted 0"):
        ModelForTimm(backbone, num_classes=3, global_pool="")
    with pytest.raises(ValueError, match="esvit_vil_tiny has no features_only"):
        timm.create_model("esvit_vil_tiny", features_only=True)
