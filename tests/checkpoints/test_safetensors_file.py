from __future__ import annotations

import json
from random import Random

import pytest
import torch
import toys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2 import functional as F

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import build
from esvit_pl.checkpoints import safetensors_file


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_the_backbone_comes_back_from_the_file_alone(family, tmp_path):
    backbone = build(family, **toys.FAMILIES[family]).eval()
    for buffer in backbone.buffers():  # batch norm that has seen something
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    safetensors_file.save(backbone, tmp_path / "new" / "backbone.safetensors", about={"epoch": 3})
    weights, said = safetensors_file.read(tmp_path / "new" / "backbone.safetensors")
    assert said == {"format": 1, "backbone": backbone.spec, "augment": None, "about": {"epoch": 3}}
    again = build(**said["backbone"]).eval()
    again.load_state_dict(weights)
    x = torch.randn(2, 3, 40, 24)
    with torch.no_grad():
        assert torch.equal(again(x).regions, backbone(x).regions)
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_shared_projection_stays_shared(tmp_path):
    backbone = build("vil", **toys.FAMILIES["vil"])
    safetensors_file.save(backbone, tmp_path / "vil.safetensors")
    weights, said = safetensors_file.read(tmp_path / "vil.safetensors")
    assert said is not None
    attention = "layer1.1.attn."
    assert torch.equal(weights[f"{attention}query.weight"], weights[f"{attention}query_global.weight"])
    again = build(**said["backbone"])
    again.load_state_dict(weights)
    parameters = dict(again.named_parameters(remove_duplicate=False))
    assert parameters[f"{attention}query.weight"] is parameters[f"{attention}query_global.weight"]


def test_the_recipe_comes_back(tmp_path):
    backbone = build("swin", **toys.FAMILIES["swin"])
    recipe = Recipe(
        eval_resize=40, eval_crop=32, num_local=[2, 2], local_size=[16, 8], local_scale=[[0.2, 0.4], [0.1, 0.3]]
    )
    backbone.transform = EvaluationTransform(recipe)
    safetensors_file.save(backbone, tmp_path / "backbone.safetensors")
    said = safetensors_file.read(tmp_path / "backbone.safetensors")[1]
    assert said is not None
    assert Recipe(**said["augment"]) == recipe
    with safe_open(tmp_path / "backbone.safetensors", "pt") as file:
        said = json.loads(file.metadata()["preparation"])
    # As another program would follow it, by torchvision.
    picture = torch.randint(256, (3, 50, 60), dtype=torch.uint8)
    resized = F.resize(picture, said["resize"]["shorter_side"], F.InterpolationMode(said["resize"]["interpolation"]))
    cut = F.center_crop(resized, said["center_crop"]).float() / said["divide_by"]
    torch.testing.assert_close(
        backbone.transform(picture), F.normalize(cut, said["mean"], said["std"]), atol=0.03, rtol=0
    )


def test_other_libraries_read_it_and_theirs_is_read(tmp_path):
    backbone = build("swin", **toys.FAMILIES["swin"])
    safetensors_file.save(backbone, tmp_path / "ours.safetensors")
    assert load_file(tmp_path / "ours.safetensors").keys() == backbone.state_dict().keys()
    save_file({"x": torch.ones(2)}, tmp_path / "theirs.safetensors")
    weights, said = safetensors_file.read(tmp_path / "theirs.safetensors")
    assert said is None
    assert torch.equal(weights["x"], torch.ones(2))


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors is not a file"):
        safetensors_file.read(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be read as a safetensors file"):
        safetensors_file.read(tmp_path / "broken.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "new.safetensors", metadata={"esvit_pl": json.dumps({"format": 2})})
    with pytest.raises(ValueError, match="is of format 2, and this version of esvit_pl reads up to 1"):
        safetensors_file.read(tmp_path / "new.safetensors")


def test_no_changed_bit_of_a_file_of_ours_is_read(tmp_path):
    path, random = tmp_path / "a.safetensors", Random(0)
    safetensors_file.save(toys.backbone(), path)
    content, whole = path.read_bytes(), safetensors_file.read(path)
    for _ in range(100):
        bit = random.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        if b"esvit_pl_sha256" in changed:
            with pytest.raises(ValueError, match=r"a.safetensors (is damaged|cannot be read)"):
                safetensors_file.read(path)
        else:  # the name of the checksum is another, and all the rest is as it was
            weights, said = safetensors_file.read(path)
            assert said == whole[1]
            assert toys.largest_difference(weights, whole[0]) == 0
