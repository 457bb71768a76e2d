from __future__ import annotations

import pytest

from esvit_pl.configs.near_match import ConfigSpace, explain_flag, explain_setting, near

SPACE = ConfigSpace(
    groups={
        "backbone": ["swin_tiny_w7", "swin_tiny_w14", "swin_small_w7"],
        "datamodule": ["device_color", "worker_color"],
        "dataset": ["folder", "photographs"],
        "experiment": ["embedded"],
    },
    keys=["backbone", "backbone.name", "trainer", "trainer.max_epochs", "optimizer.lr", "seed"],
    unchosen=["dataset", "experiment"],
)


@pytest.mark.parametrize("setting", ["hydra/launcher=joblib", "hydra/sweeper=optuna", "hparams_search=optuna"])
def test_a_missing_plugin_of_hydra_is_named_with_the_extra_that_brings_it(setting):
    groups = {"hydra/launcher": ["basic"], "hydra/sweeper": ["basic"], "hparams_search": ["optuna"]}
    without = explain_setting(setting, ConfigSpace(groups=groups))
    assert without == f"{setting}: a plugin of Hydra is not installed; pip install 'esvit_pl[sweep]'"
    groups |= {"hydra/launcher": ["basic", "joblib"], "hydra/sweeper": ["basic", "optuna"]}
    assert explain_setting(setting, ConfigSpace(groups=groups)) is None


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("backbone=swin_tinny_w7", "backbone=swin_tinny_w7: did you mean backbone=swin_tiny_w7?"),
        ("backbone=swin_tiny_w7,swin_smal_w7", "backbone=swin_smal_w7: did you mean backbone=swin_small_w7?"),
        ("datamodule=device_crops", "datamodule=device_crops: did you mean datamodule=device_color?"),  # its old name
        ("bakcbone=swin_tiny_w7", "bakcbone: did you mean backbone?"),
        ("trainer.max_epoch=3", "trainer.max_epoch: did you mean trainer.max_epochs?"),
        ("max_epochs=3", "max_epochs: did you mean trainer.max_epochs?"),
        ("~trainer.max_epoch", "~trainer.max_epoch: did you mean ~trainer.max_epochs?"),
        (
            "dataset.root=x",
            "dataset.root: nothing is chosen for dataset yet; add dataset= one of folder, photographs",
        ),
        ("embedded", "embedded: write experiment=embedded"),
        ("seed", "seed: needs a value; write seed=..."),
        ("hello", "hello: not of the form name=value"),
    ],
)
def test_a_wrong_setting_is_told_what_is_near(setting, line):
    assert explain_setting(setting, SPACE) == line


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "backbone=swin_tiny_w14",
        "backbone=null",
        "+new.key=1",
        "~seed",
        "backbone@other=swin_tiny_w7",
        "zzz=1",
    ],
)
def test_a_right_setting_or_one_with_nothing_near_is_left_alone(setting):
    assert explain_setting(setting, SPACE) is None


def test_only_the_nearest_are_named_and_equally_near_ones_together():
    assert near("swin_tiny_w7", ["swin_small_w7", "swin_tiny_w7"]) == ["swin_tiny_w7"]
    assert near("swin_tiny_w", ["swin_tiny_w1", "swin_tiny_w7", "vil"]) == ["swin_tiny_w1", "swin_tiny_w7"]
    assert near("anything", []) == []


def test_flags():
    flags = ["--multirun", "--run", "--help", "-m"]
    assert explain_flag("--multirunn", flags) == "--multirunn: did you mean --multirun?"
    assert explain_flag("--experiment=x", flags) == "--experiment=x: settings have no dashes; write experiment=x"
    assert explain_flag("-m", flags) is None
