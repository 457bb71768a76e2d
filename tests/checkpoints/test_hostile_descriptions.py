"""Files whose description of themselves somebody has made up: a sentence, and nothing else is read."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch

import esvit_pl
from esvit_pl.backbones import build
from esvit_pl.checkpoints import safetensors_file, timm_folder

SPEC = {"name": "swin_micro_32px"}
STRANGE = [None, True, -1, 10**12, 0.5, float("nan"), "", "a\n\x1b[31m", [], [[]], {}, {"a": {}}, [1, "b"], "../../a"]


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    size = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window": 4, "img_size": 16}
    return build("swin", **size)


def paths(tree, path=()):
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(each for name, child in children for each in paths(child, (*path, name)))]


def changed(tree, random_):
    """The tree with a node replaced by something strange, or taken away."""
    tree = copy.deepcopy(tree)
    path = random_.choice(paths(tree))
    if not path:
        return random_.choice(STRANGE)
    parent = tree
    for name in path[:-1]:
        parent = parent[name]
    if random_.random() < 0.3:
        del parent[path[-1]]
    else:
        parent[path[-1]] = random_.choice(STRANGE)
    return tree


def sentence_or_backbone(path) -> str | None:
    try:
        esvit_pl.load_backbone(str(path))
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")
def test_made_up_descriptions_of_safetensors_end_in_a_sentence(backbone, tmp_path):
    random_, path = random.Random(0), tmp_path / "a.safetensors"
    weights, said = backbone.state_dict(), safetensors_file.description(backbone, {"config": {"trainer": {}}})
    refused = 0
    for _ in range(150):
        safetensors_file.write(weights, path, {"esvit_pl": json.dumps(changed(said, random_))})
        refused += sentence_or_backbone(path) is not None
    assert refused > 75  # others are harmless: of settings that nobody reads


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "[" * 100_000, '"a"', '{"format": "x"}', "NaN", "{}" * 3])
def test_what_is_no_description_ends_in_a_sentence(backbone, tmp_path, text):
    path = tmp_path / "a.safetensors"
    safetensors_file.write(backbone.state_dict(), path, {"esvit_pl": text})
    assert "description" in (sentence_or_backbone(path) or "")


@pytest.mark.filterwarnings("ignore")
def test_made_up_folders_of_timm_end_in_a_sentence(backbone, tmp_path):
    random_ = random.Random(1)
    timm_folder.save(backbone, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    refused = 0
    for _ in range(60):
        (tmp_path / "config.json").write_text(json.dumps(changed(said, random_)))
        refused += sentence_or_backbone(tmp_path) is not None
    assert refused > 20


@pytest.mark.filterwarnings("ignore")
def test_made_up_checkpoints_of_ours_end_in_a_sentence(backbone, tmp_path):
    random_, path = random.Random(2), tmp_path / "a.ckpt"
    about = {
        "format": 2,
        "backbone": dict(backbone.spec),
        "loss": {},
        "config": {},
        "parameters": None,
        "augment": None,
    }
    content = {
        "esvit_pl": about,
        "state_dict": {f"teacher.backbone.{name}": value for name, value in backbone.state_dict().items()},
        "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 1}}}},
    }
    torch.save(content, path)
    assert sentence_or_backbone(path) is None
    refused = 0
    for _ in range(100):
        torch.save({**content, "esvit_pl": changed(about, random_)}, path)
        refused += sentence_or_backbone(path) is not None
        torch.save(changed({**content, "state_dict": {}}, random_), path)
        refused += sentence_or_backbone(path) is not None
    assert refused > 60


@pytest.mark.parametrize(
    "argument",
    [
        "checkpoint_path",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
        "file",
        "url",
        "hf_hub_id",
    ],
)
def test_a_stored_spec_reads_no_other_file(argument, backbone, tmp_path):
    """In a checkpoint, in our safetensors and in timm's folder; the pickle beside them would make a file."""
    marker = tmp_path / "marker"

    class Opens:
        def __reduce__(self):
            return (marker.touch, ())

    torch.save({"weight": Opens()}, tmp_path / "evil.pth")
    value = (
        {"file": str(tmp_path / "evil.pth"), "custom_load": True} if "cfg" in argument else str(tmp_path / "evil.pth")
    )
    spec = {"name": "resnet18", argument: value}
    safetensors_file.write({}, tmp_path / "a.safetensors", {"esvit_pl": json.dumps({"format": 1, "backbone": spec})})
    about = {"format": 2, "backbone": spec, "augment": None}
    torch.save({"esvit_pl": about, "state_dict": {"teacher.backbone.a": torch.zeros(1)}}, tmp_path / "a.ckpt")
    folder = tmp_path / "folder"
    timm_folder.save(backbone, folder)
    config = {"architecture": "resnet18", "model_args": {argument: value}, "pretrained_cfg": {"file": value}}
    (folder / "config.json").write_text(json.dumps(config))
    for path in (tmp_path / "a.safetensors", tmp_path / "a.ckpt", folder):
        assert f"{argument} would read or download files" in (sentence_or_backbone(path) or "")
    assert not marker.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert marker.exists()  # the control


@pytest.mark.parametrize("address", ["https://a.example/b.pth", "http://a/b.ckpt", "s3://a/b.ckpt", "file:///a.ckpt"])
def test_addresses_are_refused(address):
    with pytest.raises(ValueError, match="files are not fetched from addresses"):
        esvit_pl.load_backbone(address)
