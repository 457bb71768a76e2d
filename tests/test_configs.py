"""conf/ and the signatures say the same; every option composes and builds."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from esvit_pl.backbones import FAMILIES, TimmBackbone, build
from esvit_pl.datasets import Reading
from esvit_pl.modules import Pretrainer
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.published import COSTS

CONF = Path(__file__).parents[1] / "conf"
# What a file of a group says instead of the signature's value, because that is what the file is for.
CHOICES = {
    "backbone": None,
    "loss/view": {"view_weight", "region_weight"},
    "loss/simmim": {"cell"},  # these are the augmentation's
    "loss/mpp": {"mean", "std"},
    "optimizer": {"name"},
    "augment/global_only": {"num_local", "global_scale"},
    "augment/checkpoint": None,
    "augment/cifar": None,
    "augment/embedded": None,
    "datamodule/device_color": {"color_on"},
}

# Family -> size -> parameters as published, and how exactly.
PARAMETERS = {
    "swin": {"tiny": (28e6, 1e6), "small": (49e6, 1e6), "base": (87e6, 1e6), "large": (195e6, 1e6)},
    "cvt": {"tiny": (29_303_616, 0), "small": (22_620_160, 0)},
    "vil": {"tiny": (27_569_352, 0), "small": (24_635_752 - 769_000, 0)},  # 24.6 M with a classifier of 1000 classes
    "deit": {"small": (21e6, 1e6)},
    "vit": {"base": (85e6, 1e6), "large": (304e6, 1e6), "huge": (632e6, 2e6)},
    "igpt": {"small": (76e6, 1e6), "medium": (455e6, 1e6), "large": (1.36e9, 1e7), "xlarge": (6.8e9, 5e7)},
    "resnet50": {"": (23_508_032, 0)},  # torchvision's 25,557,032 without the classifier's 2048 * 1000 + 1000
    "resnet50w5": {"": (586e6, 1e6)},
    "resnet200w2": {"": (250e6, 1e6)},
    "resnet152w3": {"sk": (794e6, 1e6)},
}


def compose(name: str, *overrides: str):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", version_base="1.3"):
        return hydra.compose(name, list(overrides))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def nodes() -> list[tuple[str, str]]:
    groups = ("backbone", "loss", "optimizer", "augment", "dataset", "datamodule", "module", "evaluator")
    return [(group, option) for group in groups for option in options(group)]


def target_of(node):
    module, _, name = node["_target_"].rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize(("group", "option"), nodes(), ids=lambda value: value)
def test_a_number_has_one_home(group, option):
    node = OmegaConf.to_container(compose(f"{group}/{option}")[group], resolve=False)
    allowed = CHOICES.get(f"{group}/{option}", CHOICES.get(group, set()))
    target = FAMILIES.get(node["name"], TimmBackbone) if group == "backbone" else target_of(node)
    parameters = dict(inspect.signature(target).parameters)
    if target is Pretrainer:  # which hands its other arguments on
        parameters |= inspect.signature(PretrainingStep).parameters
    if "reading" in parameters:  # of image files
        parameters |= inspect.signature(Reading).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for name, value in node.items():
        if (name in ("_target_", "name") and group == "backbone") or name == "_target_":
            continue
        if target is not TimmBackbone:  # which hands what it does not know to timm; the build of every config tests it
            assert name in parameters, f"{group}/{option}: {name} is no argument of {target}"
        if value == "???" or allowed is None or name in allowed or name == "train":
            continue
        default = defaults[name]
        default = list(default) if isinstance(default, tuple) else default
        assert value == default, f"{group}/{option}: {name} is {value} here and {default} in the signature"


# tests/profiling/test_published.py builds the largest ones, too, and counts them.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in COSTS else []) for name in options("backbone")]
)
def test_every_backbone_config_builds_at_full_size(name):
    import torch

    chosen = ["backbone.name=convnextv2_atto"] if name == "timm" else []
    node = OmegaConf.to_container(compose(f"backbone/{name}", *chosen).backbone)
    node.pop("_target_")
    with torch.device("meta"):
        backbone = build(**node)
    parameters = sum(p.numel() for p in backbone.parameters())
    family, size, *_ = [*name.split("_"), ""]
    if size in PARAMETERS.get(family, {}):
        published, tolerance = PARAMETERS[family][size]
        assert parameters == pytest.approx(published, abs=tolerance)
    if "_w" in name:
        window = int(name.split("_w")[1])
        named = {"window": window} if "window" in backbone.spec else {"windows": [window, window, window, 7]}
        assert named.items() <= backbone.spec.items()
    assert node.items() <= backbone.spec.items()


def test_the_default_is_the_published_swin_t_recipe():
    cfg = compose("pretrain", "dataset=imagenet", "dataset.root=/data")
    assert (cfg.backbone.embed_dim, list(cfg.backbone.depths), cfg.backbone.window) == (96, [2, 2, 6, 2], 7)
    assert cfg.backbone.drop_path_rate == 0.1
    assert (cfg.augment.num_local, cfg.augment.global_size, cfg.augment.local_size) == (8, 224, 96)
    assert (cfg.loss.num_prototypes, cfg.loss.view_weight, cfg.loss.region_weight) == (65536, 0.5, 0.5)
    assert (cfg.optimizer.lr, cfg.trainer.max_epochs, cfg.module.momentum) == (0.0005, 300, 0.996)


@pytest.mark.parametrize("name", ["pretrain", "linear", "knn", "finetune"])
def test_no_dataset_is_chosen_for_anybody(name):
    assert "dataset" not in compose(name)


@pytest.mark.parametrize("name", options("experiment"))
def test_experiments_compose_and_open_with_their_command(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert f"esvit-pretrain experiment={name}" in text.splitlines()[1]
    assert compose("pretrain", f"experiment={name}").trainer.max_epochs > 0
