from __future__ import annotations

import pytest

from esvit_pl.configs.near_match import ConfigSpace, explain_flag, explain_setting, near, near_paths

SPACE = ConfigSpace(
    groups={
        "backbone": ["swin_tiny_w7", "swin_tiny_w14", "swin_small_w7"],
        "datamodule": ["device_color", "worker_color"],
        "dataset": ["folder", "photographs"],
        "experiment": ["embedded"],
        "loss": ["view", "view_region"],
    },
    keys=[
        "backbone",
        "backbone.name",
        "trainer",
        "trainer._target_",
        "trainer.max_epochs",
        "trainer.devices",
        "optimizer.lr",
        "evaluation.linear.lr",
        "seed",
        "ckpt_path",
    ],
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
        ("bakcbone=swin_tiny_w7", "bakcbone=swin_tiny_w7: write backbone=swin_tiny_w7"),
        ("trainer.max_epoch=3", "trainer.max_epoch=3: did you mean trainer.max_epochs=3?"),
        ("trainer.zzz=3", "trainer.zzz=3: trainer has no setting zzz; it has max_epochs, devices"),
        (
            "datamodule.trainers.max_epoch=3",  # not of another group, as similar as its name may be
            "datamodule.trainers.max_epoch=3: there is no such setting; --cfg job shows all settings",
        ),
        ("seed.x=3", "seed.x=3: seed is a single value here and has no settings of its own"),
        ("trainer.out=3", "trainer.out=3: trainer has no setting out; it has max_epochs, devices"),
        ("max_epochs=3", "max_epochs=3: did you mean trainer.max_epochs=3?"),
        ("epochs=3", "epochs=3: did you mean trainer.max_epochs=3?"),
        ("lr=0.1", "lr=0.1: did you mean optimizer.lr=0.1?"),
        ("gpus=2", "gpus=2: did you mean trainer=ddp trainer.devices=2?"),
        ("gpus=1", "gpus=1: did you mean trainer=gpu?"),
        ("model=swin_tiny", "model=swin_tiny: write backbone=swin_tiny_w7 or backbone=swin_tiny_w14"),
        ("data=photos/", "data=photos/: write dataset=folder dataset.root=photos/"),
        ("data=photographs", "data=photographs: write dataset=photographs"),
        ("dataset=photos/", "dataset=photos/: is a folder; write dataset=folder dataset.root=photos/"),
        ("loss=dino", "loss=dino: is called view here; write loss=view"),
        ("loss=ESViT", "loss=ESViT: is called view_region here; write loss=view_region"),
        ("loss=", "loss=: there is no such option; loss= takes view, view_region"),
        ("loss=null", "loss=null: there is no such option; loss= takes view, view_region"),
        ("zzz=1", "zzz=1: there is no such setting; --cfg job shows all settings"),
        ("+seed=3", "+seed=3: seed exists already; write seed=3"),
        ("~trainer.max_epoch", "~trainer.max_epoch: did you mean ~trainer.max_epochs?"),
        ("~zzz", "~zzz: there is no zzz"),
        (
            "dataset.root=x",
            "dataset.root=x: nothing is chosen for dataset yet; write dataset=folder dataset.root=x",
        ),
        ("experiment.x=1", "experiment.x=1: nothing is chosen for experiment yet; add experiment= one of embedded"),
        ("embedded", "embedded: write experiment=embedded"),
        ("embeded", "embeded: did you mean experiment=embedded?"),
        ("photos/", "photos/: write dataset=folder dataset.root=photos/"),
        ("last.ckpt", "last.ckpt: write ckpt_path=last.ckpt"),
        ("seed", "seed: needs a value; write seed=..."),
        ("seed:3", "seed:3: write seed=3"),
        ("", "one of the words is empty; was it a variable of the shell that is not set?"),
        ("hello", "hello: not of the form name=value"),
    ],
)
def test_a_wrong_setting_is_told_what_is_meant(setting, line):
    assert explain_setting(setting, SPACE) == line


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "backbone=swin_tiny_w14",
        "+new.key=1",
        "~seed",
        "backbone@other=swin_tiny_w7",
    ],
)
def test_a_right_setting_is_left_alone(setting):
    assert explain_setting(setting, SPACE) is None


def test_only_the_nearest_are_named_and_equally_near_ones_together():
    assert near("swin_tiny_w7", ["swin_small_w7", "swin_tiny_w7"]) == ["swin_tiny_w7"]
    assert near("swin_tiny_w", ["swin_tiny_w1", "swin_tiny_w7", "vil"]) == ["swin_tiny_w1", "swin_tiny_w7"]
    assert near("anything", []) == []


@pytest.mark.parametrize(
    ("flag", "after", "line"),
    [
        ("--multirunn", "", "--multirunn: did you mean --multirun?"),
        ("--experiment=x", "", "--experiment=x: settings have no dashes; write experiment=x"),
        ("--experiment", "embedded", "--experiment embedded: settings have no dashes; write experiment=embedded"),
        ("--epochs", "3", "--epochs 3: settings have no dashes; write trainer.max_epochs=3"),
        ("--epochs=3", "", "--epochs=3: settings have no dashes; write trainer.max_epochs=3"),
        ("--batch-size", "4", "--batch-size 4: settings have no dashes; write datamodule.batch_size=4"),
        ("--zzz", "", "--zzz: there is no such flag; --help lists flags and choices, --cfg job every setting"),
        ("-m", "", None),
    ],
)
def test_flags(flag, after, line):
    space = ConfigSpace(SPACE.groups, [*SPACE.keys, "datamodule.batch_size"], SPACE.unchosen)
    assert explain_flag(flag, ["--multirun", "--run", "--help", "-m"], after, space) == line


def test_a_bare_run_folder_is_a_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert explain_setting(str(tmp_path), SPACE) == f"{tmp_path}: write ckpt_path={tmp_path}"


def test_near_paths(tmp_path):
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    assert near_paths(f"{tmp_path}/photoz/cats") == [f"{tmp_path}/photos/cats/"]
    assert near_paths(f"{tmp_path}/zzz") == near_paths("/nowhere/at/all") == []
