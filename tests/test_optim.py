from __future__ import annotations

import pytest
import torch
from torch import nn

from esvit_pl.optim import LARS, OptimizerRecipe, clip_each_, parameter_groups, scaled_lr


def test_groups_by_name_and_dimension():
    module = nn.ModuleDict({"norm": nn.LayerNorm(2), "linear": nn.Linear(2, 3)})
    module.register_parameter("table", nn.Parameter(torch.zeros(5, 1)))
    module.register_parameter("frozen", nn.Parameter(torch.zeros(5, 5), requires_grad=False))
    decay, no_decay = parameter_groups(module)
    assert (decay["name"], no_decay["name"]) == ("decay", "no_decay")
    assert {id(p) for p in decay["params"]} == {id(module.table), id(module["linear"].weight)}
    assert len(no_decay["params"]) == 3


def test_clipping_is_by_each_parameters_own_norm():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_each_(parameters, 1.0)
    assert parameters[0].grad.tolist() == pytest.approx([3 / (5 + 1e-6), 4 / (5 + 1e-6)])
    assert parameters[1].grad.tolist() == pytest.approx([0.3, 0.4])
    assert parameters[2].grad is None


def test_the_learning_rate_is_per_256_images_of_the_global_batch():
    assert scaled_lr(0.0005, 1024) == 0.002
    recipe = OptimizerRecipe(warmup_epochs=0)
    assert recipe.lr_at(0, 100, warmup=0, global_batch=512) == pytest.approx(0.001)
    assert recipe.lr_at(100, 100, warmup=0, global_batch=512) == pytest.approx(1e-6)
    assert [recipe.weight_decay_at(step, 100) for step in (0, 100)] == pytest.approx([0.04, 0.4])


def test_lars_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    lars = LARS([weight, bias], lr=0.5, momentum=0.9, weight_decay=0.1)
    weight.grad, bias.grad = torch.tensor([[0.0, 1.0]]), torch.tensor([2.0])
    lars.step()
    # g + 0.1 p = (0.3, 1.4); trust = 0.001 * 5 / |g|
    g = torch.tensor([0.3, 1.4])
    first = 0.001 * 5 / g.norm() * g
    assert torch.allclose(weight.detach()[0], torch.tensor([3.0, 4.0]) - 0.5 * first)
    assert bias.item() == pytest.approx(0.0)  # neither decay nor trust
    before = bias.item()
    bias.grad = torch.tensor([0.0])
    weight.grad = None
    lars.step()
    assert bias.item() == pytest.approx(before - 0.5 * 0.9 * 2.0)


def test_lars_trusts_fully_where_a_norm_is_zero():
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=1.0).step()
    assert weight.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", LARS)])
def test_recipe_builds_its_optimizer(name, kind):
    optimizer = OptimizerRecipe(name=name).build(parameter_groups(nn.Linear(2, 2)))
    assert isinstance(optimizer, kind)
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {"decay": 0, "no_decay": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": (0.9, 1.0)}, r"two betas of 0 or more and below 1, got \[0.9, 1.0\]"),
        ({"name": "adam"}, "'adamw', 'sgd' or 'lars', got 'adam'"),
        ({"lr": -1.0}, "lr of 0 or more, got -1.0"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizerRecipe(**change)
