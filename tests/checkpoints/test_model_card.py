from __future__ import annotations

from dataclasses import asdict

import yaml

from esvit_pl.augment import Recipe
from esvit_pl.checkpoints.model_card import model_card

CONFIG = {
    "loss": {"_target_": "esvit_pl.objectives.EsViTObjective", "view_weight": 0.5, "region_weight": 0.5},
    "optimizer": {"name": "adamw", "lr": 0.0005},
    "trainer": {"max_epochs": 30, "default_root_dir": "/home/somebody/logs"},
    "dataset": {"_target_": "esvit_pl.datasets.folder", "root": "photos", "labels": "auto", "val_fraction": 0.1},
    "augment": {"num_local": [4, 4], "local_scale": [[0.2, 0.4], [0.05, 0.2]]},
    "paths": {"log_dir": "logs"},
    "logger": {"wandb": {"entity": "somebody"}},
    "callbacks": {"checkpoint": {"dirpath": "C:\\runs", "every_n_epochs": 1}, "folders": ["~/x", "y"]},
    "seed": 0,
}
RESULTS = {
    "knn": {"chance": 0.25, "untrained": 0.4, "pretrained": 0.756},
    "linear": {"pretrained": 0.8125},
    "metrics": {"knn/top1": 0.756},
    "status": "finished",
}
SWIN = {"name": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2]}


def described(backbone=None, recipe=None, **about):
    return {"format": 1, "backbone": backbone or SWIN, "augment": recipe and asdict(recipe), "about": about}


def test_a_card_says_what_the_run_says():
    about = {"source": "last.ckpt", "network": "teacher", "epoch": 30, "config": CONFIG, "results": RESULTS}
    card = model_card("somebody/esvit-swin", described(**about), architecture="swin_tiny_patch4_window7_224")
    front, _, text = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["library_name"] == "timm"
    assert text.startswith("\n# esvit-swin\n\nswin: the teacher's backbone of `last.ckpt`, after 30 epochs. ")
    assert "Pretrained without labels, by the method of EsViT" in text
    assert 'timm.create_model("hf-hub:somebody/esvit-swin", pretrained=True)' in text
    assert "norm_layer=timm.layers.LayerNorm" in text
    assert "import esvit_pl.backbones" not in text
    assert "- depths: 2, 2, 6, 2\n" in text
    assert "- loss: _target_ esvit_pl.objectives.EsViTObjective, view_weight 0.5, region_weight 0.5\n" in text
    assert "- optimizer: name adamw, lr 0.0005\n" in text
    assert "- augment: num_local 4, 4, local_scale 0.2, 0.4, 0.05, 0.2\n" in text
    assert "- trainer: max_epochs 30\n- seed: 0\n" in text
    assert "`folder`, labels auto, val_fraction 0.1." in text
    assert text.endswith(
        "| | k-NN top-1 | linear top-1 |\n|---|---|---|\n| this backbone | 75.6 % | 81.2 % |\n"
        "| the same before training | 40.0 % |  |\n| chance | 25.0 % |  |\n"
    )
    assert "photos" not in text


def test_a_card_of_a_continued_training_tells_where_it_began():
    results = {"knn": {"initial": 0.5, "pretrained": 0.6}}
    card = model_card("a/b", described(results=results), architecture="swin_tiny_patch4_window7_224")
    assert "| this backbone | 60.0 % |\n| what this training began with | 50.0 % |" in card


def test_a_card_invents_nothing():
    card = model_card("a/b", described(source="weights.pth"), architecture="swin_tiny_patch4_window7_224")
    assert "swin: a backbone of `weights.pth`. It gives features" in card
    assert "without labels" not in card
    for section, said in (
        ("Pretraining", "weights.pth does not tell it."),
        ("Data", "The checkpoint does not tell it."),
        ("Results", "No results lie beside the checkpoint."),
    ):
        assert f"## {section}\n\n{said}" in card


def test_what_must_be_imported_and_how_images_are_prepared():
    recipe = Recipe(normalize="image")
    card = model_card("a/b", described({"name": "cvt"}, recipe), architecture="esvit_cvt_tiny_w7")
    assert "import esvit_pl.backbones  # registers esvit_cvt_tiny_w7" in card
    assert "norm_layer" not in card
    assert "(`normalize: image`), which timm's transforms cannot do;" in card
    assert "normalize" not in model_card("a/b", described({"name": "cvt"}, Recipe()), architecture="x")
