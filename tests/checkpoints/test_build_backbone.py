from __future__ import annotations

import pytest
import torch
import toys

from esvit_pl.backbones import build, cvt, vil
from esvit_pl.checkpoints import load_backbone, read_checkpoint, safetensors_file, timm_folder
from esvit_pl.checkpoints.build_backbone import settled
from esvit_pl.checkpoints.released import to_released

x = torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize(
    ("family", "open_", "message"),
    [
        (cvt, {"num_heads": [2, 4], "windows": [14, 7]}, r"num_heads=\[1, 1\], windows=\[7, 7\]"),
        (vil, {"mode": -1}, "mode=1"),
    ],
    ids=["cvt", "vil"],
)
def test_what_weights_do_not_tell_is_assumed_and_said(tmp_path, family, open_, message):
    """A user who follows the message gets the backbone that was saved."""
    name = family.__name__.rpartition(".")[2]
    backbone = build(name, **{**toys.FAMILIES[name], **open_}).eval().requires_grad_(False)
    torch.save(family.to_released(backbone.state_dict()), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=rf"a.pth do not tell {message}; .*load_backbone\(.*, backbone={{'"):
        load_backbone(tmp_path / "a.pth")
    again = load_backbone(tmp_path / "a.pth", backbone=open_)
    assert {name: again.spec[name] for name in open_} == open_
    assert torch.equal(again(x).pooled, backbone(x).pooled)
    assert load_backbone(tmp_path / "a.pth", backbone=again.spec).spec == again.spec


def test_a_file_of_another_backbone_is_told_by_its_settings(tmp_path):
    backbone = toys.backbone()
    torch.save(backbone.state_dict(), tmp_path / "a.pth")
    other = toys.backbone(depths=[2, 1], window=2).spec
    with pytest.raises(
        ValueError, match=r"depths: checkpoint \[1, 1\], backbone= \[2, 1\]; window: checkpoint 4, back"
    ):
        load_backbone(tmp_path / "a.pth", backbone=other)
    same = {**backbone.spec, "drop_path_rate": 0.3, "img_size": 32}
    assert settled(read_checkpoint(tmp_path / "a.pth"), same) == same


def test_the_mask_vector_of_a_masked_training_goes_where_it_is_understood(tmp_path):
    backbone = toys.backbone().eval()
    backbone.learn_mask()
    torch.nn.init.normal_(backbone.mask_vector)
    safetensors_file.save(backbone, tmp_path / "a.safetensors")
    timm_folder.save(backbone, tmp_path / "timm")
    again = load_backbone(tmp_path / "a.safetensors")
    assert torch.equal(again.mask_vector, backbone.mask_vector)
    for place in ("a.safetensors", "timm"):
        released = to_released(read_checkpoint(tmp_path / place))["teacher"]
        assert not any("mask" in name for name in released)
    plain = load_backbone(tmp_path / "timm")
    assert plain.mask_vector is None
    assert torch.equal(plain(x).pooled, backbone(x).pooled)
