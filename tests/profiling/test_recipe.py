from __future__ import annotations

import pytest
import torch
import toys

from esvit_pl.backbones import build
from esvit_pl.objectives.interface import Objective
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.profiling import recipe
from esvit_pl.profiling.recipe import Rate, model_flops, recipe_rates, step_rate


def test_operations_of_one_step_by_hand():
    # One block on 2 x 2 patches of 4 px in one window: 4 tokens of 8 channels, MLP of 32. Multiply-adds:
    backbone = build("swin", embed_dim=8, depths=[1], num_heads=[2], window=2, img_size=8, patch_size=4)
    embedding = 4 * (3 * 4 * 4) * 8
    block = 4 * 8 * 24 + 2 * 4 * 4 * 8 + 4 * 8 * 8 + 2 * 4 * 8 * 32  # qkv, q k and attention v, projection, MLP
    objective = toys.objective(num_prototypes=16, hidden_dim=6, out_dim=5, num_layers=2)
    rows = 1 + 4  # of the view head and of the region head
    heads = rows * (8 * 6 + 6 * 5 + 5 * 16)
    view = 2 * (embedding + block + heads)
    assert model_flops(backbone, objective, [8, 8, 8], num_global=2) == 3 * 3 * view + 2 * view


def test_swin_t_by_its_published_size():
    # 4.5 G multiply-adds for an image of 224 px.
    backbone = build("swin", window=7)
    objective = toys.objective(region_weight=0)
    flops = model_flops(backbone, objective, [224], num_global=1)
    assert flops / 8 == pytest.approx(4.5e9, rel=0.01)
    assert next(backbone.parameters()).device.type == "cpu"
    assert torch.is_grad_enabled()


def test_an_objective_without_teacher_and_prototypes_is_counted_too():
    backbone = build("swin", embed_dim=8, depths=[1], num_heads=[2], window=2, img_size=8, patch_size=4)

    class Contrastive(Objective):
        uses_teacher = False

        def heads(self, width, region_width):
            return torch.nn.ModuleDict({"z": torch.nn.Linear(width, 4)})

    def student_alone(sides):
        return model_flops(backbone, Contrastive(), sides)

    assert student_alone([8, 8]) == 2 * student_alone([8]) > 3 * 2 * 8 * 4


def test_the_slower_of_step_and_loader_bounds():
    step = Rate("step", 32.0, 100)
    rates = {rate.part: rate for rate in recipe_rates(step, 50.0, flops=10**9, device_flops=1e11)}
    assert rates["step"] == Rate("step", 32.0, 100, 0.32)
    assert rates["loader"] == Rate("loader", 50.0)
    assert rates["training, bound by the step"].images_per_second == 32.0
    *_, bound = recipe_rates(step, 20.0, flops=10**9, device_flops=None)
    assert (bound.part, bound.images_per_second, bound.utilization_share) == ("training, bound by the loader", 20, None)


def test_the_step_is_timed_after_one_and_its_memory_counts_everything(monkeypatch):
    made = []

    def make():
        made.append(toys.pretrainer().step)
        return made[-1]

    taken = iter([1.0, 4.0, 2.0])

    def scripted(run, device):
        run()
        return next(taken)

    monkeypatch.setattr(recipe, "seconds", scripted)
    rate = step_rate(make, OptimizerRecipe(), toys.SIDES, batch_size=4, repeats=3)
    assert (rate.part, rate.images_per_second) == ("step", 4 / 2.0)
    weights = sum(parameter.numel() for parameter in made[0].student.parameters()) * 4
    assert rate.peak_bytes > 4 * weights  # student, teacher, two moments
    assert len(made) == 2
