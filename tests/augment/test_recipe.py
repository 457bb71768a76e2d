from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from esvit_pl.augment import Recipe

CONF = Path(__file__).parents[2] / "conf" / "augment"


def configured(name: str) -> Recipe:
    values = OmegaConf.load(CONF / f"{name}.yaml")
    if name != "multi_crop":
        assert values.pop("defaults") == ["multi_crop", "_self_"]
        values = OmegaConf.merge(OmegaConf.load(CONF / "multi_crop.yaml"), values)
    assert values.pop("_target_") == "esvit_pl.augment.Recipe"
    return Recipe(**values)


def test_the_defaults_are_the_released_recipe():
    views = Recipe().views
    assert [(view.size, view.scale) for view in views] == [(224, (0.4, 1.0))] * 2 + [(96, (0.05, 0.4))] * 8
    assert [view.blur for view in views] == [1.0, 0.1] + [0.5] * 8
    assert [view.solarize for view in views] == [0.0, 0.2] + [0.0] * 8
    assert {(view.jitter, view.grayscale, view.noise) for view in views} == {(0.8, 0.2, 0.0)}


def test_the_configuration_shows_every_default():
    shown = OmegaConf.load(CONF / "multi_crop.yaml")
    assert set(shown) == {field.name for field in fields(Recipe)} | {"_target_"}
    assert configured("multi_crop") == Recipe()


def test_the_other_configurations():
    assert configured("global_only").sizes == (224, 224)
    assert configured("global_only").global_scale == (0.14, 1.0)
    assert configured("cifar").sizes == (32, 32, 16, 16, 16, 16)
    embedded = configured("embedded")
    assert embedded.sizes == (32, 32, 16, 16, 16, 16)
    assert {view.blur for view in embedded.views} == {view.solarize for view in embedded.views} == {0.0}


def test_several_kinds_of_local_crops():
    recipe = Recipe(num_local=[2, 1], local_size=[96, 64], local_scale=[[0.2, 0.4], [0.05, 0.2]])
    assert recipe.sizes == (224, 224, 96, 96, 64)
    assert recipe.views[-1].scale == (0.05, 0.2)
    shared = Recipe(num_local=[2, 1], local_size=[96, 64])
    assert shared.views[-1].scale == (0.05, 0.4)
    assert len(Recipe(num_local=0).views) == 2


def test_more_global_views_take_the_last_entry():
    assert [view.blur for view in Recipe(num_global=4, num_local=0).views] == [1.0, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"num_global": 0}, "num_global must be 1 or more, got 0"),
    ({"num_local": -1}, "num_local must be 0 or more, got -1"),
    ({"local_size": 0}, "local_size must be a whole number of pixels, 1 or more, got 0"),
    ({"global_size": 22.4}, "global_size must be a whole number of pixels, 1 or more, got 22.4"),
    ({"num_local": [4, 4], "local_size": [96]}, "lists of equal length, got: num_local has 2, local_size has 1"),
    ({"global_scale": (0.5, 1.5)}, r"global_scale must be two numbers, 0 < low <= high <= 1, got \(0.5, 1.5\)"),
    ({"local_scale": (0.4, 0.05)}, "local_scale must be two numbers"),
    ({"local_scale": (-0.1, 0.4)}, "local_scale must be two numbers"),
    ({"supervised_scale": 0.5}, "supervised_scale must be two numbers"),
    ({"aspect": (0, 1)}, "aspect must be two numbers, 0 < low <= high, got"),
    ({"blur_radius": (2.0, 0.1)}, "blur_radius must be two numbers"),
    ({"flip": 1.2}, "flip must be a probability between 0 and 1"),
    ({"global_blur": []}, "global_blur must be a probability"),
    ({"hue": 0.6}, "hue must lie between 0 and 0.5, got 0.6"),
    ({"brightness": -0.1}, "brightness must lie between 0 and 1, got -0.1"),
    ({"noise": -1}, "noise must be 0 or more, got -1"),
    ({"std": (1, 1, 0)}, "mean and std need three numbers each .*, std positive"),
    ({"std": (1, 1, 1, 1), "mean": (0, 0, 0, 0)}, "three numbers each .or one each, for grey images"),
    ({"std": [0.2]}, r"got \(0.485, 0.456, 0.406\) and \(0.2,\)"),
    ({"normalize": "batch"}, "normalize must be 'dataset', 'image' or 'view', got 'batch'"),
    ({"eval_crop": 300}, "eval_crop must be at most eval_resize, got 300 and 256"),
])  # fmt: skip
def test_bad_numbers(wrong, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)
