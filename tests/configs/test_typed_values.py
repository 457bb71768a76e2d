"""Values of a wrong type, anywhere in a config: the sentence that a user reads."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pytest
from omegaconf import OmegaConf

from esvit_pl.configs.compose import composed
from esvit_pl.configs.config_space import defaults
from esvit_pl.configs.typed_values import problems

OPTIMIZER = {"_target_": "esvit_pl.optim.OptimizerRecipe", "lr": 0.0005, "name": "adamw", "fused": None}
DATA = {"_target_": "esvit_pl.data.ImageDataModule", "batch_size": 64, "num_workers": None}
DEFAULTS = {
    "seed": 0,
    "tags": [],
    "dry_run": False,
    "init": {"network": None, "heads": True},
    "optimizer": OPTIMIZER,
    "datamodule": DATA,
    "module": {"_target_": "esvit_pl.modules.Pretrainer", "momentum": 0.996, "compile": False},
    "backbone": {"_target_": "esvit_pl.backbones.build", "depths": [2, 2], "name": "swin"},
    "evaluation": {"baselines": "auto", "knn": {"_target_": "esvit_pl.evaluation.KNN", "k": 20}},
    "trainer": {"_target_": "pytorch_lightning.Trainer", "precision": "32-true", "devices": 1, "strategy": "auto"},
    "dataset": {"_target_": "esvit_pl.datasets.folder", "root": "photos"},
    "callbacks": {"progress": {"_target_": "esvit_pl.callbacks.progress_bar", "refresh_rate": 1}},
}


def changed(key, value):
    """The defaults with one value changed, as plain Python."""
    cfg = OmegaConf.create(DEFAULTS)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return OmegaConf.to_container(cfg)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("optimizer.lr", "abc", "optimizer.lr=abc is no number; write one such as optimizer.lr=0.0005"),
        ("optimizer.lr", None, "optimizer.lr=null is no number; write one such as optimizer.lr=0.0005"),
        ("optimizer.lr", True, "optimizer.lr=true is no number; write one such as optimizer.lr=0.0005"),
        ("optimizer.lr", "0.1", "optimizer.lr='0.1' is text, since it stands in quotes; write optimizer.lr=0.1"),
        ("optimizer.lr", "", "optimizer.lr= is no number; write one such as optimizer.lr=0.0005"),
        ("optimizer.name", "adam", "optimizer.name=adam is not one of adamw, sgd, lars"),
        (
            "optimizer.fused",
            "maybe",
            "optimizer.fused=maybe is neither true nor false; write one such as optimizer.fused=true",
        ),
        ("optimizer.lrr", 1, "optimizer.lrr=1: did you mean optimizer.lr=1?"),
        ("seed", "abc", "seed=abc is no whole number; write one such as seed=0"),
        ("dry_run", "abc", "dry_run=abc is neither true, false nor timed; write one such as dry_run=false"),
        ("tags", "abc", "tags=abc is no list; write one such as tags=[]"),
        ("init", "abc", "init=abc: init is a group of settings; write init.network=... or init.heads=..."),
        ("init.heads", 3, "init.heads=3 is neither true nor false; write one such as init.heads=true"),
        (
            "datamodule.batch_size",
            1.5,
            "datamodule.batch_size=1.5 is no whole number; write one such as datamodule.batch_size=64",
        ),
        (
            "datamodule.num_workers",
            "abc",
            "datamodule.num_workers=abc is no whole number; write one such as datamodule.num_workers=10",
        ),
        ("optimizer.lr", float("nan"), "optimizer.lr=nan is no number; write one such as optimizer.lr=0.0005"),
        ("module.momentum", "abc", "module.momentum=abc is no number; write one such as module.momentum=0.996"),
        ("module.compile", 3, "module.compile=3 is neither true nor false; write one such as module.compile=false"),
        ("backbone.depths", "abc", "backbone.depths=abc is no list; write one such as backbone.depths=[2,2]"),
        (
            "backbone.depths",
            [2, "x"],
            "backbone.depths=[2,x] holds x, which is no number; write a list such as backbone.depths=[2,2]",
        ),
        (
            "evaluation.knn.k",
            "abc",
            "evaluation.knn.k=abc is neither a whole number nor a list; write one such as evaluation.knn.k=20",
        ),
        (
            "evaluation.knn.k",
            [20, "a"],
            "evaluation.knn.k=[20,a] holds a, which is no whole number; write a list such as evaluation.knn.k=[20]",
        ),
        ("dataset.root", 2024, "dataset.root=2024 is read as a number; text stands in quotes: \"dataset.root='2024'\""),
        (
            "dataset.root",
            True,
            "dataset.root=true is read as true or false; text stands in quotes: \"dataset.root='true'\"",
        ),
        (
            "callbacks.progress",
            "abc",
            "callbacks.progress=abc: callbacks.progress is a group of settings; "
            "write callbacks.progress.refresh_rate=...",
        ),
    ],
)
def test_a_value_of_a_wrong_type_is_told(key, value, sentence):
    assert list(problems(changed(key, value), DEFAULTS).values()) == [sentence]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 1),
        ("optimizer.fused", None),
        ("datamodule.num_workers", 3),
        ("evaluation.knn.k", [20, 10]),
        ("trainer.devices", "auto"),
        ("trainer.devices", [0, 1]),
        ("trainer.precision", 16),
        ("trainer.strategy", {"_target_": "pytorch_lightning.strategies.DDPStrategy", "start_method": "spawn"}),
        ("trainer.max_epochs", 3),
        ("module.clip_grad", None),
        ("module.anything", "goes"),
        ("backbone.new", {"a": 1}),
        ("callbacks.progress", None),
        ("init.network", "teacher"),
        ("dataset.root", "???"),
        ("tags", ["a", 1]),
        ("dry_run", "timed"),
        ("evaluation.baselines", True),
    ],
)
def test_a_value_that_fits_is_left_alone(key, value):
    assert problems(changed(key, value), DEFAULTS) == {}


def test_a_precision_that_does_not_exist_is_told_with_those_that_do():
    (sentence,) = problems(changed("trainer.precision", "fp8"), DEFAULTS).values()
    assert sentence.startswith("trainer.precision=fp8 is not one of ")
    assert "bf16-mixed" in sentence


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            False,
            "loss: a setting is called false (its value is 0.1); YAML reads on, off, yes, no, true and false as true "
            "or false, so such a name stands in quotes: 'off': ...",
        ),
        (3, "loss: a setting is called 3, which YAML reads as a number; a name stands in quotes: '3': ..."),
    ],
)
def test_a_name_that_yaml_does_not_read_as_text(name, sentence):
    tree = {"loss": {"_target_": "esvit_pl.objectives.EsViTObjective", name: 0.1}}
    assert list(problems(tree).values()) == [sentence]


@cache
def shipped(*words):
    return OmegaConf.to_container(composed("pretrain", words)[0], resolve=True)


GROUPS = (
    "augment",
    "backbone",
    "callbacks",
    "datamodule",
    "dataset",
    "debug",
    "experiment",
    "logger",
    "loss",
    "optimizer",
    "trainer",
)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_that_we_ship_fits(group):
    """Also without defaults, by the annotations alone: an option whose values its own target refuses is our mistake."""
    names = (path.name for path in files("esvit_pl.conf").joinpath(group).iterdir())
    options = [
        name for name in names if name.endswith(".yaml") and name != "checkpoint.yaml"
    ]  # nulls that are filled in
    chosen = sorted(options)
    for option in chosen:
        cfg, choices = composed("pretrain", [f"{group}={option.removesuffix('.yaml')}"])
        tree = OmegaConf.to_container(cfg, resolve=True)
        itself = OmegaConf.to_container(cfg, resolve=False)  # what is composed without anybody's values
        given = defaults("esvit_pl.conf", "pretrain", choices) if group in ("experiment", "debug") else itself
        assert problems(tree, given) == problems(tree) == {}, option
