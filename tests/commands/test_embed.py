from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from commandline import MACHINE
from PIL import Image

from esvit_pl.checkpoints import load_backbone
from esvit_pl.datasets import folder
from esvit_pl.evaluation import load_features


def embed(commands, pretrained, root, *words):
    data = ["dataset=folder", f"dataset.root={root}"]
    given = {word.partition("=")[0]: word for word in [*data, *MACHINE, f"ckpt_path={pretrained.folder}", *words]}
    return commands.run("embed", *given.values())


def expected(pretrained, root):
    """Features of every picture, one by one."""
    backbone, images = load_backbone(pretrained.folder), folder(root).train
    prepared = torch.stack([backbone.transform(images[index][0]) for index in range(len(images))])
    features = backbone(prepared)
    return images, features, backbone.last_blocks(prepared, 2)


def test_the_features_of_a_folder(pretrained, commands, pictures, tmp_path):
    outcome = embed(commands, pretrained, pictures, f"out={tmp_path}/f.npz", "blocks=2", "regions=true")
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(f"{tmp_path}/f.npz\n")
    assert "images DataLoader 0: 100%" in outcome.out + outcome.err
    assert "Validation" not in outcome.out + outcome.err
    assert not (tmp_path / "f.npz.partial").exists()
    names, labels, found, about = load_features(tmp_path / "f.npz")
    images, features, blocks = expected(pretrained, pictures)
    assert names == [images.name(index) for index in range(len(images))]
    assert labels.tolist() == images.labels
    assert about["classes"] == folder(pictures).classes
    regions = features.regions.unflatten(1, features.grid)
    for kind, wanted in {"pooled": features.pooled, "blocks2": blocks, "regions": regions}.items():
        torch.testing.assert_close(torch.from_numpy(found[kind]), wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_and_a_table(pretrained, commands, pictures, unlabelled, tmp_path):
    assert embed(commands, pretrained, pictures, f"out={tmp_path}/f.npz", "dtype=float16").code == 0
    assert load_features(tmp_path / "f.npz").features["pooled"].dtype == np.float16
    assert embed(commands, pretrained, unlabelled, f"out={tmp_path}/f.csv").code == 0
    with (tmp_path / "f.csv").open() as file:
        head, *lines = csv.reader(file)
    _, features, _ = expected(pretrained, unlabelled)
    assert head[:2] == ["name", "pooled_0"]
    assert len(lines) == len(features.pooled)
    assert [float(cell) for cell in lines[3][1:]] == pytest.approx(features.pooled[3].tolist(), abs=1e-4)


def test_what_was_stopped_goes_on(pretrained, commands, pictures, tmp_path, monkeypatch):
    from esvit_pl.modules.embedder import Embedder

    seen, step = [], Embedder.validation_step

    def stopping(self, batch, batch_idx):
        if batch_idx == 2 and not seen:
            raise RuntimeError("power cut")
        step(self, batch, batch_idx)

    monkeypatch.setattr(Embedder, "validation_step", stopping)
    words = [f"out={tmp_path}/f.npz", "datamodule.eval_batch_size=5"]
    assert embed(commands, pretrained, pictures, *words).code != 0
    assert not (tmp_path / "f.npz").exists()
    other = embed(commands, pretrained, pictures, *words, "network=student")
    assert other.code == 1
    assert "f.npz.partial was begun with weights" in other.err
    seen.append(True)
    outcome = embed(commands, pretrained, pictures, *words)
    assert outcome.code == 0, outcome.err
    assert "f.npz.partial holds 10 of 36 images already" in outcome.out
    _, features, _ = expected(pretrained, pictures)
    found = torch.from_numpy(load_features(tmp_path / "f.npz").features["pooled"])
    torch.testing.assert_close(found, features.pooled, rtol=1e-4, atol=1e-5)


def test_images_that_cannot_be_read_are_left_out_with_their_names(pretrained, commands, tmp_path):
    for name in ("a", "b", "c"):
        Image.effect_noise((40, 40), 50).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    outcome = embed(
        commands,
        pretrained,
        tmp_path,
        f"out={tmp_path}/f.npz",
        "dataset.on_bad_image=skip",
        "dataset.bad_image_budget=1",
    )
    assert outcome.code == 0, outcome.err
    assert "left out, for they cannot be read: b.png" in outcome.out
    found = load_features(tmp_path / "f.npz")
    assert found.names == ["a.png", "c.png"]
    assert len(found.features["pooled"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out=f.txt"], "out=f.txt must end in .npz, .csv or .parquet"),
        (["split=test"], "split=test must be one of train, val, bank, query"),
        (["split=val"], "split=val: these images have none; choose split=train, bank or query"),
        (["dtype=int8"], "dtype=int8 must be float32 or float16"),
        (["blocks=9"], "between 1 and the backbone's 2 blocks, got 9"),
    ],
)
def test_what_is_refused(pretrained, commands, pictures, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    outcome = embed(commands, pretrained, pictures, *words)
    assert outcome.code == 1
    assert said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_said_before_anything_is_computed(pretrained, commands, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("esvit_pl.commands.embed.find_spec", lambda name: None)
    outcome = embed(commands, pretrained, pictures, f"out={tmp_path}/f.parquet")
    assert outcome.code == 1
    assert "f.parquet needs pyarrow: pip install 'esvit_pl[parquet]'" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_written_over(pretrained, commands, pictures, tmp_path):
    (tmp_path / "f.npz").write_text("mine")
    outcome = embed(commands, pretrained, pictures, f"out={tmp_path}/f.npz")
    assert outcome.code == 1
    assert f"{tmp_path}/f.npz is there already; overwrite=true replaces it" in outcome.err
    assert embed(commands, pretrained, pictures, f"out={tmp_path}/f.npz", "overwrite=true").code == 0
    assert len(load_features(tmp_path / "f.npz").names) == 36


def test_as_a_function(pretrained, pictures, tmp_path):
    import esvit_pl

    images = folder(pictures).train
    path = esvit_pl.embed(
        pretrained.folder,
        [images[index][0] for index in range(6)],
        out=tmp_path / "f.npz",
        trainer={"accelerator": "cpu"},
        datamodule={"num_workers": 0},
    )
    _, features, _ = expected(pretrained, pictures)
    found = torch.from_numpy(load_features(path).features["pooled"])
    torch.testing.assert_close(found, features.pooled[:6], rtol=1e-4, atol=1e-5)
