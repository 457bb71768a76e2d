from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from esvit_pl.optim import LARS, FusedSGD, OptimizerRecipe, clip_each_, parameter_groups, scaled_lr
from esvit_pl.schedules import Progress


def test_groups_by_name_and_dimension():
    module = nn.ModuleDict({"norm": nn.LayerNorm(2), "linear": nn.Linear(2, 3)})
    module.register_parameter("table", nn.Parameter(torch.zeros(5, 1)))
    module.register_parameter("frozen", nn.Parameter(torch.zeros(5, 5), requires_grad=False))
    decay, no_decay = parameter_groups(module)
    assert (decay["name"], no_decay["name"]) == ("decay", "no_decay")
    assert {id(p) for p in decay["params"]} == {id(module.table), id(module["linear"].weight)}
    assert len(no_decay["params"]) == 3


def test_a_backbone_learns_more_slowly_than_its_heads_and_its_lower_layers_more_slowly_still():
    """A micro-Swin of two blocks: the patch embedding lies three layers below the heads."""
    student = nn.ModuleDict({"backbone": toys.backbone(), "head": nn.Linear(2, 2)})
    groups = parameter_groups(student, lr_factor=0.5, layer_decay=0.25)
    recipe = OptimizerRecipe(lr=1.0, warmup_epochs=0)
    optimizer = recipe.build(groups)
    recipe.set_(optimizer, Progress(0, 10), global_batch=256)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    of = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert len(of) == len(names)
    assert of["head.weight"] == pytest.approx((1.0, 0.04))
    assert of["head.bias"] == (1.0, 0.0)
    depths = student["backbone"].depths()
    assert {depths[name.removeprefix("backbone.")] for name in of if name.startswith("backbone.")} == {0, 1, 2}
    for name, (lr, decay) in of.items():
        if name.startswith("backbone."):
            assert lr == 0.5 * 0.25 ** (3 - depths[name.removeprefix("backbone.")])
            assert (decay == 0) == (name.endswith("bias") or ".norm" in name), name
    assert len({group["name"] for group in groups}) == len(groups)  # Lightning's LearningRateMonitor needs names


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"lr_factor": -1.0}, r"\(init.lr_factor\) must be 0 or more, got -1.0"),
        ({"layer_decay": 0.0}, "must be above 0 and at most 1, got 0.0"),
        ({"layer_decay": 1.5}, "must be above 0 and at most 1, got 1.5"),
    ],
)
def test_factors_that_cannot_be_are_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(nn.Linear(2, 2), **factors)


def test_clipping_is_by_each_parameters_own_norm():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    clip_each_(parameters, 1.0)
    assert parameters[0].grad.tolist() == pytest.approx([3 / (5 + 1e-6), 4 / (5 + 1e-6)])
    assert parameters[1].grad.tolist() == pytest.approx([0.3, 0.4])
    assert parameters[2].grad is None


def test_all_gradients_are_clipped_at_once():
    def launches(number: int) -> int:
        parameters = [nn.Parameter(torch.zeros(2)) for _ in range(number)]
        for parameter in parameters:
            parameter.grad = torch.ones(2)
        with toys.Launches() as launched:
            clip_each_(parameters, 1.0)
        return launched.number

    assert launches(9) == launches(2) > 0


def test_the_learning_rate_is_per_256_images_of_the_global_batch():
    assert scaled_lr(0.0005, 1024) == 0.002
    recipe = OptimizerRecipe(warmup_epochs=0)
    first, last = Progress(0, 100), Progress(100, 100)
    assert recipe.lr_at(first, global_batch=512) == pytest.approx(0.001)
    assert recipe.lr_at(last, global_batch=512) == pytest.approx(1e-6)
    assert [recipe.weight_decay_at(progress) for progress in (first, last)] == pytest.approx([0.04, 0.4])


def test_shapes_are_chosen_by_name():
    recipe = OptimizerRecipe(
        lr=0.4, lr_end=0.0, lr_schedule="linear", warmup_epochs=1, weight_decay_schedule="constant"
    )
    steps = [Progress(step, 10, steps_per_epoch=2) for step in range(10)]
    wanted = [0.0, 0.4, *(0.4 * (1 - step / 8) for step in range(8))]
    assert [recipe.lr_at(progress, global_batch=256) for progress in steps] == pytest.approx(wanted)
    assert {recipe.weight_decay_at(progress) for progress in steps} == {0.04}


def test_set_gives_both_groups_what_is_theirs():
    recipe = OptimizerRecipe(warmup_epochs=0)
    optimizer = recipe.build(parameter_groups(nn.Linear(2, 2)))
    recipe.set_(optimizer, Progress(0, 4), global_batch=512)
    decay, no_decay = optimizer.param_groups
    assert [decay["lr"], no_decay["lr"]] == pytest.approx([0.001, 0.001])
    assert [decay["weight_decay"], no_decay["weight_decay"]] == pytest.approx([0.04, 0.0])


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


def test_the_recipe_gives_lars_its_trust():
    lars = OptimizerRecipe(name="lars", trust=0.02).build(parameter_groups(nn.Linear(2, 2)))
    assert {group["trust"] for group in lars.param_groups} == {0.02}


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
        ({"lr_schedule": "cosin"}, "lr_schedule needs one of constant, linear, cosine, got 'cosin'"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizerRecipe(**change)


# Kernels


class Run:
    """Two layers, and their optimizer: the same at every start."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, fused: bool | None = True) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
        self.optimizer = OptimizerRecipe(name=name, fused=fused).build(parameter_groups(self.net))
        self.steps = 0

    def step(self, only: int = 2) -> None:
        """One step with the first `only` layers' gradients."""
        noise = torch.Generator().manual_seed(self.steps)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = 0.1, 0.05 if group["name"] == "decay" else 0.0
        for parameter in self.net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
        for parameter in self.net[only:].parameters():
            parameter.grad = None
        self.optimizer.step()
        self.steps += 1

    def everything(self) -> list[Any]:
        """Parameters and the optimizer's state: moments, step counts."""
        state = self.optimizer.state_dict()["state"]
        return [p.detach().clone() for p in self.net.parameters()] + [
            value.clone() for place in sorted(state) for _, value in sorted(state[place].items())
        ]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_fused_kernel_computes_what_the_others_do(name):
    """Also where parameters join later, at which torch's own fused SGD fails."""
    fused, plain = Run(name), Run(name, fused=False)
    for only in (1, 1, 2, 2):
        fused.step(only=only)
        plain.step(only=only)
    for mine, other in zip(fused.everything(), plain.everything(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_fused_sgd_runs_its_closure_with_gradients():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = FusedSGD([parameter], lr=0.5)

    def closure() -> float:
        loss = (3 * parameter).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 6.0
    assert parameter.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_resumed_optimizer_keeps_its_own_kernel(name, fused):
    """A run that began on a GPU goes on on a CPU, and the other way round."""
    other, mine = Run(name, fused=not fused), Run(name, fused=fused)
    for _ in range(2):
        other.step()
    mine.net.load_state_dict(other.net.state_dict())
    mine.optimizer.load_state_dict(deepcopy(other.optimizer.state_dict()))
    mine.steps = other.steps
    assert {bool(group["fused"]) for group in mine.optimizer.param_groups} == {fused}
    other.step()
    mine.step()
    for x, y in zip(mine.everything(), other.everything(), strict=True):
        assert torch.allclose(x, y, atol=1e-6)


@pytest.mark.parametrize(
    ("fused", "device", "scaled", "expected"),
    [
        (None, "cpu", False, True),
        (None, "meta", False, False),
        (None, "cuda", False, True),
        (None, "cuda", True, False),
        (False, "cuda", False, False),
        (True, "cpu", False, True),
    ],
)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_kernels_are_fused_unless_the_loss_is_scaled(name, fused, device, scaled, expected):
    with FakeTensorMode():  # a GPU's tensors without a GPU
        groups = [{"name": "decay", "params": [nn.Parameter(torch.empty(2, 2, device=device))]}]
        optimizer = OptimizerRecipe(name=name, fused=fused).build(groups, scaled=scaled)
    assert [bool(group["fused"]) for group in optimizer.param_groups] == [expected]


def test_one_parameter_elsewhere_is_enough_for_no_fused_kernel():
    with FakeTensorMode():
        params = [nn.Parameter(torch.empty(2, device=device)) for device in ("cuda", "cpu")]
        optimizer = OptimizerRecipe().build([{"name": "no_decay", "params": params}])
    assert not optimizer.param_groups[0]["fused"]


# What the rivals' authors do otherwise


@pytest.mark.parametrize(
    ("decaying", "wanted"),
    [
        ("matrices", {"linear.weight", "relative_position_bias_table", "cls_token", "prototypes.gain"}),
        ("layers", {"linear.weight"}),
        ("all", {"linear.weight", "linear.bias", "norm.weight", "norm.bias", "relative_position_bias_table"}
         | {"cls_token", "prototypes.gain"}),
    ],
)  # fmt: skip
def test_what_decays(decaying, wanted):
    module = nn.ModuleDict({"norm": nn.LayerNorm(2), "linear": nn.Linear(2, 3), "prototypes": nn.Module()})
    module.register_parameter("relative_position_bias_table", nn.Parameter(torch.zeros(5, 1)))
    module.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, 2)))
    module["prototypes"].register_parameter("gain", nn.Parameter(torch.zeros(5, 1)))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = {group["name"]: group["params"] for group in parameter_groups(module, decaying=decaying)}
    assert {names[id(parameter)] for parameter in groups["decay"]} == wanted
    assert sum(map(len, groups.values())) == len(names)


def test_lars_with_the_rate_inside_keeps_the_old_rate_in_its_momentum():
    """Two steps with the gradient (0, 1) and the weight (3, 4) of length 5: the trust ratio is 0.1 * 5 = 0.5, so the
    first step goes down by lr / 2. With a rate of 1, then of 0, the momentum of 0.9 goes on by 0.45 or stands still."""
    ends = {}
    for inside in (True, False):
        weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        lars = LARS([weight], lr=1.0, momentum=0.9, trust=0.1, rate_inside=inside)
        for lr in (1.0, 0.0):
            lars.param_groups[0]["lr"] = lr
            weight.grad = torch.tensor([[0.0, 1.0]])
            lars.step()
        ends[inside] = weight[0, 1].item()
    assert ends == {True: pytest.approx(4 - 0.5 - 0.45), False: pytest.approx(4 - 0.5)}


@pytest.mark.parametrize(("decaying", "wanted"), [("matrices", 4 - 1.0), ("all", 4 - 0.5)])
def test_where_all_decay_all_have_a_trust_ratio(decaying, wanted):
    module = nn.Module()
    module.bias = nn.Parameter(torch.tensor([3.0, 4.0]))
    recipe = OptimizerRecipe("lars", lr=1.0, warmup_epochs=0, weight_decay=0, weight_decay_end=0, trust=0.1)
    recipe = replace(recipe, decaying=decaying)
    lars = recipe.build(parameter_groups(module, decaying=decaying))
    recipe.set_(lars, Progress(0, 1), global_batch=256)
    module.bias.grad = torch.tensor([0.0, 1.0])
    lars.step()
    assert module.bias[1].item() == pytest.approx(wanted)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="decaying 'matrices', 'layers' or 'all', got 'some'"):
        OptimizerRecipe(decaying="some")
