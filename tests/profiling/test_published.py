from __future__ import annotations

from importlib.resources import files

import pytest

from esvit_pl.configs.compose import CONFIGS, list_backbones
from esvit_pl.profiling.published import (
    DINO,
    ESVIT,
    EXPERIMENTS,
    RECIPE,
    RIVALS,
    Accuracy,
    accuracy,
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
