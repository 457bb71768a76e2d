"""experiment=own_images: choices become the config, the user's settings win, the printed command is the same."""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import esvit_pl
from esvit_pl.configs import own_images
from esvit_pl.datasets import ArrayDataset, FolderDataset, Splits, folder


def splits(images: int, side: int = 40) -> Splits:
    pixels = torch.zeros(1, 3, side, 2 * side, dtype=torch.uint8).expand(images, -1, -1, -1)
    return Splits(ArrayDataset(pixels, [f"{i}.png" for i in range(images)]))


def settled(*words: str, images: int = 5_000, side: int = 400) -> Any:
    words = ("experiment=own_images", "dataset.root=photos", "trainer=cpu", *words)
    compose = lambda words: esvit_pl.compose("pretrain", *words)  # noqa: E731
    cfg, given = own_images.settled(compose(words), words, compose, splits(images, side))
    assert len(given.train) == images
    return cfg


def plainly(cfg: Any) -> dict[str, Any]:
    tree = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(tree, dict)
    del tree["chosen"]
    return tree


def test_the_choices_are_in_the_config():
    cfg = settled()
    assert (cfg.backbone.embed_dim, cfg.augment.global_size, cfg.trainer.max_epochs) == (24, 112, 50)
    assert (cfg.loss.num_prototypes, cfg.loss.hidden_dim, cfg.datamodule.batch_size) == (256, 256, 64)
    assert (cfg.optimizer.warmup_epochs, list(cfg.augment.blur_radius)) == (5, [0.1, 1.0])
    assert "backbone=swin_micro_w7" in cfg.chosen


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["trainer.max_epochs=7", "loss=view"],
        ["dataset=folder", "optimizer=sgd", "backbone=vil_tiny", "~callbacks.knn"],
    ],
    ids=" ".join,
)
def test_the_printed_command_is_the_same_training(capsys, words):
    cfg = settled(*words)
    said = capsys.readouterr().out
    program, *pinned = shlex.split(
        said[said.index("esvit-pretrain dataset=folder") :]
        if "dataset=folder" not in words
        else said[said.rindex("esvit-pretrain") :]
    )
    assert program == "esvit-pretrain"
    assert not any(word.startswith("experiment=") for word in pinned)
    assert plainly(esvit_pl.compose("pretrain", *pinned)) == plainly(cfg)


def test_what_the_user_sets_wins_and_the_rest_follows(capsys):
    cfg = settled("trainer.max_epochs=3", "loss=view", "augment=cifar", "optimizer=sgd", "loss.num_prototypes=99")
    said = capsys.readouterr().out
    assert cfg.trainer.max_epochs == 3
    assert (cfg.loss.view_weight, cfg.loss.num_prototypes, cfg.loss.hidden_dim) == (1.0, 99, 256)
    assert (cfg.augment.global_size, cfg.augment.eval_resize) == (32, 32)
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.warmup_epochs) == ("sgd", 0.0005, None)
    assert "  epochs     \n" not in said
    assert "  epochs\n             given" in said
    assert "loss.hidden_dim=256 loss.out_dim=64 (the others are given)" in said


def test_a_part_without_such_a_setting_does_not_get_it():
    cfg = settled("~loss.hidden_dim", "~callbacks.knn")
    assert "hidden_dim" not in cfg.loss


def test_the_same_images_give_the_same_choice_and_a_config_without_the_wish_stays(capsys):
    assert settled() == settled()
    capsys.readouterr()
    cfg = esvit_pl.compose("pretrain", "dataset.root=photos", "dataset=folder")
    assert own_images.settled(cfg, [], None) == (cfg, None)
    assert capsys.readouterr().out == ""


def test_a_resumed_training_keeps_what_was_chosen(monkeypatch, capsys):
    chosen = list(settled().chosen)
    monkeypatch.setattr("esvit_pl.checkpoints.read_checkpoint", lambda path: SimpleNamespace(config={"chosen": chosen}))
    words = ("experiment=own_images", "dataset.root=photos", "ckpt_path=RUN/checkpoints/last.ckpt", "trainer=cpu")
    compose = lambda words: esvit_pl.compose("pretrain", *words)  # noqa: E731
    capsys.readouterr()
    cfg, images = own_images.settled(compose(words), words, compose, None)  # no image is looked at
    assert images is None
    assert list(cfg.chosen) == chosen
    assert cfg.trainer.max_epochs == 50
    assert capsys.readouterr().out == "experiment=own_images: the settings are those of the checkpoint\n"


def test_the_size_comes_from_headers_and_files_that_cannot_be_read_are_left_to_others(pictures, tmp_path, monkeypatch):
    images = folder(pictures).train
    monkeypatch.setattr(FolderDataset, "open", None)  # pixels are not wanted
    assert own_images.shorter_side(images) == (40, 36)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 1 images that were looked at can be read"):
        own_images.shorter_side(folder(tmp_path).train)


def test_the_command_trains_with_what_it_has_chosen(commands, pictures):
    words = ["experiment=own_images", f"dataset.root={pictures}", "trainer.max_epochs=2", "datamodule.num_workers=0"]
    outcome = commands.run("pretrain", *words)
    assert outcome.code == 0, outcome.err
    assert "experiment=own_images chooses for 36 images, shorter side 40 px (median of 36), a CPU" in outcome.out
    assert outcome.results["status"] == "finished"
    cfg = OmegaConf.load(outcome.folder / "config.yaml")
    assert (cfg.augment.global_size, cfg.datamodule.batch_size, cfg.loss.num_prototypes) == (32, 8, 64)
    assert all(loss > 0 for loss in outcome.metric("train/view_loss"))
    again = esvit_pl.compose("pretrain", *words[:2], *cfg.chosen, *words[2:], f"paths.output_dir={outcome.folder}")
    assert {**plainly(again), "paths": None} == {**plainly(cfg), "paths": None}
    resumed = commands.run("pretrain", *words, f"ckpt_path={outcome.last}")
    assert resumed.code == 0, resumed.err
    assert "experiment=own_images: the settings are those of the checkpoint" in resumed.out
    by_name = commands.run("pretrain", "dataset=folder", words[1], *cfg.chosen, *words[2:], f"ckpt_path={outcome.last}")
    assert by_name.code == 0, by_name.err


def test_the_same_from_python(pictures):
    made = esvit_pl.plan(pictures, experiment="own_images", epochs=2, datamodule={"num_workers": 0}, trainer="cpu")
    assert (made.images, made.global_batch, made.steps) == (36, 8, 8)
    assert made.heads < made.backbone * 2
