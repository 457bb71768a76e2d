from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from esvit_pl.configs import assemble
from esvit_pl.configs.compose import CONFIGS, compose, list_backbones
from esvit_pl.profiling.published import (
    COSTS,
    DINO,
    ESVIT,
    EXPERIMENTS,
    RECIPE,
    RIVALS,
    Accuracy,
    accuracy,
    rival,
    v100_images_per_second,
)


def test_every_config_that_an_experiment_reproduces_has_its_architecture_and_both_accuracies():
    configs = {path.name.removesuffix(".yaml") for path in files(CONFIGS).joinpath("experiment").iterdir()}
    assert set(EXPERIMENTS) <= configs
    assert {f"{name}_{loss}" for name in ESVIT for loss in ("view", "view_region")} == set(RECIPE)
    assert set(ESVIT) <= set(list_backbones())
    for name in ESVIT:
        view, both = accuracy(name, "view"), accuracy(name, "view_region")
        assert view.linear_percent < both.linear_percent, name
        assert view.knn_percent < both.knn_percent, name


def test_dino_s_configs_have_a_line_among_the_rivals():
    assert set(DINO) <= set(list_backbones())
    assert not set(DINO) & set(ESVIT)
    assert (accuracy("deit_small_p16", "view"), v100_images_per_second("deit_small_p16")) == ((77.0, 74.5), 1007)
    assert (accuracy("vit_base_p8", "view"), v100_images_per_second("vit_base_p8")) == ((80.1, 77.4), 63)
    assert accuracy("vit_base_p8", "view_region") is None


@pytest.mark.parametrize("name", COSTS)
def test_what_is_here_for_its_costs_has_the_published_parameters(name):
    """Positions of MoCo v3 are fixed and counted by nobody; no classifier counts."""
    with torch.device("meta"):
        backbone = assemble.construct(compose("pretrain", f"backbone={name}"), "backbone")
    learnt = [parameter.numel() for key, parameter in backbone.named_parameters() if key != "model.pos_embed"]
    assert sum(learnt) == pytest.approx(rival(name).parameters, rel=0.01)


def test_what_is_here_for_its_costs_is_trained_by_no_recipe():
    assert len({rival(name) for name in COSTS}) == len(COSTS)
    assert not set(COSTS) & {*ESVIT, *DINO}
    for path in files(CONFIGS).joinpath("experiment").iterdir():
        assert not [name for name in COSTS if f"/backbone: {name}\n" in path.read_text()], path
    assert (str(rival("resnet50w5")), v100_images_per_second("resnet50w5")) == ("SwAV 78.5 / 67.1", 76)
    assert (str(rival("vit_large_p7_bn")), accuracy("vit_large_p7_bn", "view")) == ("MoCo-v3 81.0", None)
    assert rival("swin_tiny_w7") is None


def test_an_accuracy_is_written_with_as_many_digits_as_the_paper_gives():
    assert str(Accuracy(77.0, 74.0)) == "77.0 / 74.0"
    assert str(Accuracy(65.31, 60.3)) == "65.31 / 60.30"


@pytest.mark.parametrize("name", ["swin_large_w7", "swin_micro_w7"])
def test_what_is_not_published_is_left_open(name: str):
    assert (accuracy(name, "view"), accuracy(name, "view_region"), v100_images_per_second(name)) == (None, None, None)


def test_a_rival_is_listed_once_and_none_is_more_accurate_than_swin_b():
    lines = [(rival.method, rival.architecture) for rival in RIVALS]
    assert len(set(lines)) == len(lines)
    assert max(rival.linear_percent for rival in RIVALS) < accuracy("swin_base_w14", "view_region").linear_percent
