"""The pictures of a run, from its files."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from esvit_pl.augment import EvaluationTransform, Recipe, draw
from esvit_pl.backbones import build
from esvit_pl.datasets import ArrayDataset
from esvit_pl.loggers import MetricsCSV
from esvit_pl.runs import pictures

TABLE = {"knn": {"chance": 0.25, "raw_pixels": 0.3, "untrained": 0.4, "pretrained": 0.6}}


@pytest.fixture
def log(tmp_path):
    logger = MetricsCSV(tmp_path)
    for step in (3, 7):
        logger.log_metrics({"train/view_loss": 2.0, "knn/top1": 0.5, "epoch": step // 4}, step)
    return logger.path


def names(drawn):
    for path in drawn:
        with Image.open(path) as image:
            image.load()
    return [path.name for path in drawn]


def test_a_table_with_baselines_gives_the_curve_and_the_comparison(tmp_path, log):
    assert names(pictures.draw_results(tmp_path / "figures", log, TABLE)) == ["learning_curve.png", "comparison.png"]


def test_without_baselines_there_is_nothing_to_compare(tmp_path, log):
    assert names(pictures.draw_results(tmp_path, log, {"knn": {"pretrained": 0.6}})) == ["learning_curve.png"]
    assert names(pictures.draw_results(tmp_path, log, {})) == ["learning_curve.png"]


def test_without_losses_there_is_no_curve(tmp_path):
    assert names(pictures.draw_results(tmp_path, tmp_path / "metrics.csv", TABLE)) == ["comparison.png"]
    MetricsCSV(tmp_path).log_metrics({"time/images_per_second": 1.0}, 0)
    assert pictures.draw_results(tmp_path, tmp_path / "metrics.csv", {}) == []


def test_the_crops_are_those_of_the_first_epoch(tmp_path, monkeypatch):
    """The boxes are the training's own: same seed, epoch 0, same image."""
    noise = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    images, recipe = ArrayDataset(noise, ["a", "b"]), Recipe(global_size=16, num_local=1, local_size=8)
    seen = []
    monkeypatch.setattr(pictures, "crops", lambda *args, **kwargs: seen.append((args, kwargs)))
    monkeypatch.setattr(pictures, "save", lambda figure, path: path)
    assert pictures.draw_crops(tmp_path, images, recipe, seed=5, index=1) == tmp_path / "crops.png"
    ((image, boxes, views), rest) = seen[0]
    assert torch.equal(image, noise[1])
    assert torch.equal(boxes, draw(recipe.views, recipe, (40, 40), seed=5, epoch=0, index=1).boxes)
    assert [view.shape[-1] for view in views] == [16, 16, 8]
    assert all(view.min() >= 0 and view.max() <= 1 for view in views)  # colours, not normalised values
    assert rest["num_global"] == 2


@pytest.mark.parametrize(
    ("how", "kinds"),
    [
        ({"name": "swin", "embed_dim": 8, "depths": [1], "num_heads": [1], "window": 4, "img_size": 32},
         ["attention.png", "correspondence.png", "pca.png"]),
        ({"name": "resnet18", "img_size": 64}, ["correspondence.png", "pca.png"]),
    ],
    ids=["a backbone with attention", "a backbone without"],
)  # fmt: skip
def test_what_a_backbone_has_learned(tmp_path, capsys, how, kinds):
    backbone = build(**how)
    backbone.transform = EvaluationTransform(Recipe(global_size=64, eval_resize=64, eval_crop=64))
    images = ArrayDataset(torch.randint(0, 256, (3, 3, 40, 60), dtype=torch.uint8), ["a", "b", "c"])
    assert names(pictures.draw_learned(tmp_path, backbone, images)) == kinds
    assert backbone.training
    assert capsys.readouterr().out == ""


def test_a_picture_that_fails_does_not_fail_the_run(tmp_path, capsys):
    assert (
        pictures.draw_learned(tmp_path, torch.nn.Identity(), ArrayDataset(torch.zeros(1, 3, 8, 8).byte(), ["a"])) == []
    )
    assert "note: no pictures of what the backbone has learned (ValueError: nothing says how" in capsys.readouterr().out
