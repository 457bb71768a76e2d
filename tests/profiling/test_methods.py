from __future__ import annotations

from functools import partial

import toys

from esvit_pl.backbones import build
from esvit_pl.objectives import SimCLRObjective
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling import methods
from esvit_pl.profiling.methods import Method, costs
from esvit_pl.profiling.recipe import step_rate


def step(objective):
    return PretrainingStep(build("swin", embed_dim=8, depths=[1], num_heads=[2], window=2, img_size=8), objective())


def test_parameters_and_memory_are_those_of_each_method_alone():
    view = partial(step, partial(toys.objective, num_prototypes=16, hidden_dim=6, out_dim=5, region_weight=0))
    simclr = partial(step, partial(SimCLRObjective, out_dim=4))
    found = {"view": Method(view, OptimizerRecipe(), [8, 8, 8]), "simclr": Method(simclr, OptimizerRecipe(), [8, 8])}
    first, second = costs(found, batch_size=4, repeats=1)
    assert (first.method, first.views, second.method, second.views) == ("view", 3, "simclr", 2)
    backbone = sum(weight.numel() for weight in simclr().encoder.parameters())
    head = (
        8 * 8 + 8 * 8 + 8 * 4 + 2 * (8 + 8) + 4
    )  # batch norm after each of three layers, the last one without a shift
    assert second.trained_parameters == backbone + head
    for row, (make, recipe, sides) in zip((first, second), found.values(), strict=True):
        assert row.peak_bytes == step_rate(make, recipe, sides, batch_size=4, repeats=1).peak_bytes


def test_methods_take_turns_and_the_first_lap_warms_up(monkeypatch):
    lasted = iter([9.0, 9.0, 1.0, 3.0, 2.0, 5.0, 1.5, 4.0])  # a b, four times
    monkeypatch.setattr(methods, "seconds", lambda step, device: next(lasted))
    make = partial(step, partial(SimCLRObjective, out_dim=4))
    found = {name: Method(make, OptimizerRecipe(), [8, 8]) for name in "ab"}
    first, second = costs(found, batch_size=4, repeats=3)
    assert (first.step_seconds, first.time_ratio) == (1.5, 1.0)
    assert (second.step_seconds, second.time_ratio) == (4.0, 4.0 / 1.5)
