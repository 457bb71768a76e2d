"""esvit-convert: what comes out of a run's checkpoint is its teacher, in every format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import build
from esvit_pl.checkpoints import load_backbone, onnx_graph, safetensors_file, timm_folder
from esvit_pl.commands import convert


@pytest.fixture(scope="module")
def trained(pretrained) -> Path:
    return pretrained.last


def weights(checkpoint: Path, network: str = "teacher") -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = f"{network}.backbone."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def equal(mine, theirs) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_to_timm_and_back(commands, trained, tmp_path):
    out = tmp_path / "new" / "swin"
    outcome = commands.run("convert", f"ckpt_path={trained}", "to=timm", f"out={out}", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{out}: swin, ")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert equal(model.state_dict(), weights(trained))
    assert equal(load_backbone(out).state_dict(), weights(trained))
    about = timm_folder.read(out).description["about"]
    assert (about["source"], about["network"], about["epoch"]) == ("last.ckpt", "teacher", 2)
    assert about["config"]["loss"]["num_prototypes"] == 16
    assert set(about["results"]) == {"knn", "linear", "metrics"}
    assert str(trained.parents[1]) not in (out / "config.json").read_text()


def test_to_timm_says_at_which_sides_timms_swin_differs(commands, tmp_path):
    """Shifted windows on padded maps: at 20 px maps of 5 tokens, windows of 4. Without a shift nothing differs."""
    torch.manual_seed(0)
    for depth, words in ((2, "other regions than these weights were trained with (20 px 0."), (1, "")):
        swin = build("swin", embed_dim=16, depths=[depth], num_heads=[2], window=4, img_size=32).eval()
        for parameter in swin.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5)  # so that attention matters
        swin.transform = EvaluationTransform(Recipe(global_size=32, local_size=20, eval_resize=32, eval_crop=32))
        safetensors_file.save(swin, tmp_path / "swin.safetensors")
        ours = [f"ckpt_path={tmp_path}/swin.safetensors", "to=timm", f"out={tmp_path}/timm{depth}"]
        outcome = commands.run("convert", *ours, folder=tmp_path)
        assert outcome.code == 0, outcome.err
        assert words in outcome.out
        assert ("warning: " in outcome.out) == bool(words)


def test_to_safetensors_of_the_student(commands, trained, tmp_path):
    out = tmp_path / "student.safetensors"
    words = [f"ckpt_path={trained}", "to=safetensors", f"out={out}", "network=student"]
    outcome = commands.run("convert", *words, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert equal(load_backbone(out).state_dict(), weights(trained, "student"))
    said = safetensors_file.read(out)[1]
    assert said["about"]["network"] == "student"
    assert "results" not in said["about"]  # they are the teacher's
    assert Recipe(**said["augment"]) == load_backbone(trained).transform.recipe
    assert sorted(tmp_path.iterdir()) == [out]  # no run folder is left


def test_to_onnx_says_how_far_it_is_from_torch(commands, trained, tmp_path, monkeypatch):
    """The export itself, which takes seconds, is tested in its room."""
    pytest.importorskip("onnxruntime")
    sizes = []

    def export(backbone, path, *, size, preparation):
        assert equal(backbone.state_dict(), weights(trained))
        sizes.append(size)
        path.write_text("graph")
        return 2e-7

    monkeypatch.setattr(onnx_graph, "export", export)
    words = [f"ckpt_path={trained}", "to=onnx", f"out={tmp_path / 'swin.onnx'}", "overwrite=true"]
    outcome = commands.run("convert", *words, folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "for images of 16 px; onnxruntime and torch differ by at most 2.0e-07 of the largest value" in outcome.out
    assert commands.run("convert", *words, "size=24", folder=tmp_path).code == 0
    assert sizes == [16, 24]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["swin.onnx", "swin.onnx.json"]
    recipe = load_backbone(trained).transform.recipe
    said = json.loads((tmp_path / "swin.onnx.json").read_text())
    assert said["resize"] == {"shorter_side": round(recipe.eval_resize * 24 / 16), "interpolation": "bicubic"}
    assert (said["center_crop"], said["mean"], said["std"]) == (24, list(recipe.mean), list(recipe.std))
    (tmp_path / "swin.onnx").unlink()
    refused = commands.run("convert", *words[:-1], folder=tmp_path)
    assert "swin.onnx.json, which to=onnx writes too, exists already; give another name" in refused.err


def test_packages_are_asked_for_before_anything_takes_time(commands, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    outcome = commands.run("convert", f"ckpt_path={trained}", "to=onnx", f"out={tmp_path / 'x.onnx'}", folder=tmp_path)
    assert outcome.code == 1
    assert "onnx is not installed, and ONNX needs it: pip install 'esvit_pl[onnx]'" in outcome.err


def test_to_the_released_format(commands, trained, tmp_path):
    out = tmp_path / "released.pth"
    outcome = commands.run("convert", f"ckpt_path={trained}", "to=released", f"out={out}", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert set(torch.load(out, weights_only=True)) >= {"student", "teacher"}
    assert equal(load_backbone(out).state_dict(), weights(trained))


def test_push_uploads_the_folder_with_its_card(commands, trained, tmp_path, monkeypatch):
    calls = []

    class Hub:
        """Keeps what would be sent."""

        def __init__(self, **_):
            self.has_card = any(name == "upload_folder" for name, _ in calls)

        def create_repo(self, repo, **options):
            calls.append(("create_repo", (repo, options)))
            return f"https://hub/{repo}"

        def file_exists(self, repo, name):
            return self.has_card

        def upload_folder(self, **options):
            calls.append(("upload_folder", options))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    out = tmp_path / "swin"
    words = [f"ckpt_path={trained}", "to=timm", f"out={out}", "push=somebody/swin", "overwrite=true"]
    for private in ("true", "false"):
        outcome = commands.run("convert", *words, f"private={private}", folder=tmp_path)
        assert outcome.code == 0, outcome.err
        assert outcome.out.endswith("https://hub/somebody/swin\n")
    assert [options for name, options in calls if name == "create_repo"] == [
        ("somebody/swin", {"private": True, "exist_ok": True}),
        ("somebody/swin", {"private": False, "exist_ok": True}),
    ]
    first, second = (options for name, options in calls if name == "upload_folder")
    assert first["allow_patterns"] == ["config.json", "model.safetensors", "README.md"]
    assert second["allow_patterns"] == ["config.json", "model.safetensors"]  # the card that is there stays
    card = (out / "README.md").read_text()
    assert "| this backbone |" in card
    assert str(trained.parents[1]) not in card


def test_what_the_hub_refuses_is_one_line(trained, tmp_path, monkeypatch):
    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, *_, **__):
            raise RuntimeError("401 Client Error\nlong text")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    timm_folder.save(load_backbone(trained), tmp_path)
    with pytest.raises(ValueError, match=r"push=a/b: RuntimeError: 401 Client Error; `hf auth login` logs in"):
        convert.push(tmp_path, "a/b", private=True)


def test_nothing_is_overwritten_unasked(commands, trained, tmp_path):
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    words = [f"ckpt_path={trained}", f"out={out}"]
    refused = commands.run("convert", *words, "to=safetensors", folder=tmp_path)
    assert refused.code == 1
    assert f"out={out} exists already; give another name, or overwrite=true" in refused.err
    itself = ["to=safetensors", f"out={trained}", "overwrite=true"]
    lost = commands.run("convert", f"ckpt_path={trained}", *itself, folder=tmp_path)
    assert f"out={trained} is the checkpoint that is to be converted; give another name" in lost.err
    folder = commands.run("convert", *words, "to=timm", "overwrite=true", folder=tmp_path)
    assert f"out={out} is a file, and to= writes a folder" in folder.err
    assert out.read_text() == "mine"
    outcome = commands.run("convert", *words, "to=safetensors", "overwrite=true", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert equal(load_backbone(out).state_dict(), weights(trained))
    measured = commands.run("knn", f"ckpt_path={out}", "trainer=cpu")  # the file keeps silent about the images' folder
    assert measured.err.startswith(f"esvit-knn needs dataset=, for example dataset=folder dataset.root=photos/: {out}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["to=timm"], "esvit-convert needs ckpt_path= and out=\n\nFor example:"),
        (["ckpt_path=a", "out=b", "to=tensorflow"], "to=tensorflow is not a format; choose to=timm, to=safetensors"),
        (["ckpt_path=a", "out=b", "to=onnx", "push=a/b"], "push=a/b uploads a timm folder; set to=timm, got to=onnx"),
        (["ckpt_path=a", "out=b", "to=timm", "push=a"], "push=a does not name a repository; write push=USER/REPO"),
        (["ckpt_path=no.ckpt", "out=b", "to=safetensors"], "ckpt_path=no.ckpt: there is no such file or folder"),
    ],
)
def test_what_is_refused_leaves_nothing(commands, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = commands.run("convert", *words, folder=tmp_path)
    assert outcome.code == 1
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []
