from __future__ import annotations

import numpy as np
import pytest
import timm
import timm.data
import torch
import toys
from PIL import Image
from safetensors.torch import save_file

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import build, swin
from esvit_pl.checkpoints import load_backbone, read_checkpoint, timm_folder
from esvit_pl.checkpoints.timm_folder import recipe_of_timm

x = torch.randn(2, 3, 64, 64)


def test_bare_weights_are_recognised_with_or_without_wrapping(tmp_path):
    backbone = build("swin", embed_dim=8, depths=[1, 2], num_heads=[1, 2])
    released = swin.to_released(backbone.state_dict())
    files = {
        "released": released,
        "timm": backbone.state_dict(),
        "wrapped": {f"module.{name}": value for name, value in released.items()},
        "as a state": {"state_dict": released},
        "with a classifier": {**released, "head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / "a.pth")
        again = load_backbone(tmp_path / "a.pth")
        assert toys.largest_difference(toys.state(again), toys.state(backbone)) == 0, name


def test_safetensors_of_others_are_recognised(tmp_path):
    backbone = build("swin", embed_dim=8, depths=[1, 2], num_heads=[1, 2])
    save_file(backbone.state_dict(), tmp_path / "a.safetensors")
    again = load_backbone(tmp_path / "a.safetensors")
    assert torch.equal(again(x).pooled, backbone.eval()(x).pooled)


def test_names_of_timm_models(monkeypatch):
    """Nothing is downloaded: the model that timm would have filled with weights is a random one."""
    made = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    asked = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: asked.update({"name": name, **kwargs}) or made)
    source = read_checkpoint("vit_tiny_patch16_224.augreg_in21k")
    assert asked == {"name": "vit_tiny_patch16_224.augreg_in21k", "pretrained": True, "num_classes": 0}
    assert source.backbone == {"name": "vit_tiny_patch16_224.augreg_in21k", "img_size": 224}
    assert torch.equal(source.networks["backbone"]["backbone.model.cls_token"], made.cls_token)
    assert read_checkpoint("timm/vit_tiny_patch16_224.augreg_in21k").backbone == source.backbone


def test_a_pretrained_model_of_another_size_than_224(monkeypatch):
    """Its position table is for its own side."""
    made = timm.create_model("vit_tiny_patch16_384.augreg_in21k_ft_in1k", num_classes=0).eval()
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kw: made if kw["pretrained"] else create(name, **kw))
    backbone = load_backbone("vit_tiny_patch16_384.augreg_in21k_ft_in1k")
    assert (backbone.spec["img_size"], backbone.transform.recipe.eval_crop) == (384, 384)
    images = torch.randn(1, 3, 384, 384)
    with torch.no_grad():
        assert torch.equal(backbone(images).pooled, made(images))


def test_repositories_of_the_hub_are_timm_folders(tmp_path, monkeypatch):
    """Nothing is downloaded: the hub's copy lies in a folder."""
    import huggingface_hub

    backbone = toys.backbone().eval()
    backbone.transform = EvaluationTransform(Recipe(mean=[0.1, 0.2, 0.3]))
    timm_folder.save(backbone, tmp_path / "copy")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or tmp_path / "copy")
    again = load_backbone("hf-hub:me/mine")
    assert asked == ["me/mine"]
    assert again.spec == backbone.spec
    assert again.transform.recipe.mean == (0.1, 0.2, 0.3)
    assert toys.largest_difference(toys.state(again), toys.state(backbone)) == 0


def test_names_that_nobody_has():
    with pytest.raises(ValueError, match="RUN/last.ckpt does not exist: this folder has no RUN; it"):
        read_checkpoint("RUN/last.ckpt")
    with pytest.raises(ValueError, match="vit_tiny_patch16_225 is not a file.*timm has .*vit_tiny_patch16_224"):
        read_checkpoint("vit_tiny_patch16_225")
    with pytest.raises(
        ValueError, match="timm has no pretrained weights for vit_tiny_patch16_224.none; it has vit_tiny"
    ):
        read_checkpoint("vit_tiny_patch16_224.none")


@pytest.mark.parametrize(
    ("name", "resize"),
    [
        ("vit_base_patch16_224.augreg_in21k", 248),  # timm rounds 224 / 0.9 down
        ("resnet50.tv_in1k", 256),  # bilinear
        ("convnextv2_atto.fcmae_ft_in1k", 256),
        ("coat_lite_medium_384.in1k", 384),  # both sides are resized
    ],
)
@pytest.mark.parametrize("size", [(500, 375), (300, 700)])
def test_images_are_prepared_as_timm_does_it(name, resize, size):
    cfg = timm.get_pretrained_cfg(name)
    recipe = recipe_of_timm(cfg.to_dict())
    assert (recipe.eval_resize, recipe.mean, recipe.std) == (resize, tuple(cfg.mean), tuple(cfg.std))
    waves = np.sin(np.add.outer(np.arange(size[1]) / 9, np.arange(size[0]) / 7))[..., None] * [1, 0.5, -1]
    image = Image.fromarray((127 + 120 * waves).astype(np.uint8))
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict()))(image)
    ours = EvaluationTransform(recipe)(image)
    assert ours.shape == theirs.shape
    steps = (ours - theirs).abs() * 255 * torch.tensor(cfg.std)[:, None, None]
    assert steps.max() < 2.01  # Pillow rounds between rows and columns
    assert steps.mean() < 0.1


def test_files_that_are_no_weights(tmp_path):
    torch.save({"epoch": 3, "weights": [1, 2]}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"a.pth is not a known kind of checkpoint; it holds a dict with epoch, weights\."
    ):
        read_checkpoint(tmp_path / "a.pth")
    torch.save({"features.weight": torch.zeros(2)}, tmp_path / "b.pth")
    with pytest.raises(
        ValueError, match=r"b.pth holds weights whose names belong to no known backbone \(features.weight, "
    ):
        read_checkpoint(tmp_path / "b.pth")


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **how):
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(
        ValueError, match=r"weights of swin_tiny_patch4_window7_224.ms_in1k are not in the Hub's cache on"
    ):
        read_checkpoint("swin_tiny_patch4_window7_224.ms_in1k")
