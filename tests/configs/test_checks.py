"""What is looked at before torch is loaded: paths, packages, values."""

from __future__ import annotations

import os

import pytest
from omegaconf import OmegaConf

from esvit_pl.configs import checks

FOLDER = "esvit_pl.datasets.folder"


def folder_problem(root):
    return checks.missing_folder({"dataset": {"_target_": FOLDER, "root": root}})


def test_a_folder_of_images_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").touch()
    said = "dataset.root=photoz/: there is no such folder; did you mean dataset.root=photos/?"
    assert folder_problem("photoz/") == said
    assert folder_problem("zzz") == f"dataset.root=zzz: there is no such folder (looked in {tmp_path})"
    assert folder_problem("/nowhere") == "dataset.root=/nowhere: there is no such folder"
    assert folder_problem("notes.txt") == "dataset.root=notes.txt is a file; give the folder that your images lie in"
    assert folder_problem("") == "dataset.root= is empty; give the folder of your images: dataset.root=photos/"
    assert "path of Windows" in folder_problem("C:\\me\\photos")
    assert "the quotes have become a part of the name" in folder_problem("'zzz'")
    assert "of 300 bytes is too long for a file name" in folder_problem("x" * 300)
    assert folder_problem("photos") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    tmp_path.chmod(0)
    try:
        assert "no permission to read this folder" in folder_problem(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_data_sets_that_make_their_folder_are_left_alone():
    assert checks.missing_folder({"dataset": {"_target_": "esvit_pl.datasets.cifar10", "root": "nowhere"}}) is None
    assert checks.missing_folder({"dataset": None}) is checks.missing_folder({}) is None


def test_checkpoints_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.ckpt").touch()
    said = "ckpt_path=lst.ckpt: there is no such file or folder; did you mean ckpt_path=last.ckpt?"
    assert checks.missing_file({"ckpt_path": "lst.ckpt", "init_from": None}) == said
    assert "init_from=./run: there is no such file or folder" in checks.missing_file({"init_from": "./run"})
    assert checks.missing_file({"ckpt_path": ""}) == "ckpt_path= is empty; give a checkpoint, or leave it out"
    for name in ("last.ckpt", "hf-hub:me/mine", "swin_tiny_patch4_window7_224.ms_in1k", "timm/vit", "hf-hub:me/a.bin"):
        assert checks.missing_file({"ckpt_path": name}) is None


def test_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    tree = {"logger": {"wandb": {"_target_": "pytorch_lightning.loggers.WandbLogger"}}}
    said = "logger.wandb needs the package wandb, which is not installed: pip install 'esvit_pl[wandb]'"
    assert checks.missing_package(tree) == said
    monkeypatch.setattr(checks, "find_spec", lambda name: name)
    assert checks.missing_package(tree) is None


def test_a_value_that_comes_from_another_setting_is_told_there():
    cfg = OmegaConf.create(
        {
            "evaluation": {
                "epochs": "abc",
                "linear": {"_target_": "esvit_pl.evaluation.Linear", "epochs": "${evaluation.epochs}"},
            },
            "optimizer": {"_target_": "esvit_pl.optim.OptimizerRecipe", "lr": "abc"},
        }
    )
    said = checks.problem(cfg, package="esvit_pl.conf", config_name="pretrain", choices={})
    assert said == "optimizer.lr=abc is no number; write one such as optimizer.lr=0.1"
    del cfg["optimizer"]
    said = checks.problem(cfg, package="esvit_pl.conf", config_name="pretrain", choices={})
    assert said == "evaluation.epochs=abc is no whole number; write one such as evaluation.epochs=10"
