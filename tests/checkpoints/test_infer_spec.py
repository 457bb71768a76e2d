from __future__ import annotations

import golden_files
import pytest
import torch

from esvit_pl.backbones import build, cvt, swin, vil
from esvit_pl.checkpoints.infer_spec import infer_spec

TO_RELEASED = {"swin": swin.to_released, "cvt": cvt.to_released, "vil": vil.to_released}
BACKBONES = [
    {"name": "swin", "embed_dim": 24, "depths": [1, 2, 1], "num_heads": [1, 2, 4], "window": 7},
    {"name": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 4, 8], "window": 14},
    {"name": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window": 8, "img_size": 32},
    {"name": "swin", "embed_dim": 8, "depths": [1], "num_heads": [2], "patch_size": 2, "in_chans": 1, "mlp_ratio": 2.0},
    {"name": "cvt", "dims": [64, 192], "depths": [1, 2], "num_heads": [1, 3], "windows": [7, 7]},
    {"name": "cvt", "dims": [64, 128], "depths": [1, 1], "num_heads": [2, 4], "windows": [7, 7], "in_chans": 4},
    {"name": "vil", "share_projections": False, "depths": [1, 1, 1, 1]},
    {"name": "vil", "depths": [1, 1, 2, 1], "windows": [14, 7, 7, 7], "img_size": 448},
    {"name": "vil", "depths": [1, 1, 1, 1], "positions": ["absolute"] * 4, "norm_embed": False},
]


@pytest.mark.parametrize("given", BACKBONES, ids=lambda given: given["name"])
def test_sizes_are_read_off_the_released_weights(given):
    """What is not guessed is as it was, and what is guessed has the published models' value."""
    backbone = build(**given)
    spec, guessed = infer_spec(TO_RELEASED[given["name"]](backbone.state_dict()))
    assert {name: value for name, value in spec.items() if name not in guessed} == {
        name: backbone.spec[name] for name in spec if name not in guessed
    }
    assert {name: spec.get(name, given[name]) for name in given} == given
    assert set(guessed) <= {*backbone.spec}


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("swin_") + golden_files.paths("vil_"), ids=lambda path: path.stem)
def test_golden_weights_tell_their_sizes(path):
    file = golden_files.read(path)
    spec, guessed = infer_spec(file.part("w"))
    if spec["name"] == "vil":
        told = {**golden_files.vil_arch(file.settings["arch"]), "mode": file.settings["mode"]}
        spec |= {name: told[name] for name in guessed if name in told}
    backbone = build(**spec)
    renamed = {"swin": swin.from_released, "vil": vil.from_released}[spec["name"]](file.part("w"))
    backbone.load_state_dict(renamed)
    side = file.sizes("global")[0]
    reference = file.tensors[f"global.{side}"]
    backbone.eval()
    with torch.no_grad():
        pooled = backbone(golden_files.image(len(reference), side)).pooled
    assert golden_files.relative_error(pooled, reference) < 1e-5


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch8_224", "resnet50", "resnet18"])
def test_models_that_timm_has_are_found_by_their_weights(name):
    import timm

    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert infer_spec(state).spec["name"] == name


def test_strangers_are_not_recognised():
    assert infer_spec({"features.0.weight": torch.zeros(1)}) is None
    import timm

    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224", depth=3).state_dict()
    with pytest.raises(
        ValueError,
        match=r"no ViT of width 192, 3 blocks .*=timm backbone.name=vit_tiny_patch16_224 \+backbone.depth=3$",
    ):
        infer_spec(state)
