from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import toys
from torch.utils._pytree import tree_leaves

from esvit_pl.backbones import build
from esvit_pl.backbones.swin_windows import window_plan
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.objectives import EsViTObjective
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.profiling import memory
from esvit_pl.profiling.memory import compare, predict, predict_pass

RELEASED = (224,) * 2 + (96,) * 8
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("swin", "cvt")]
FAMILIES = {**toys.FAMILIES, "test_resnet": {}, "test_vit": {}}  # the last two are timm's


PAIR = (32, 32)
MANY = {"num_prototypes": 3000, "out_dim": 32}  # weights, gradients and optimizer state weigh more than activations


@pytest.fixture(autouse=True)
def one_thread():
    """Backward of a convolution takes about a gradient of its weights a thread: more than a tiny step's tenth."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(**overrides: Any) -> Pretrainer:
    """Of few operations: the view loss alone."""
    return toys.pretrainer({"region_weight": 0.0, "view_weight": 1.0}, **overrides)


def with_backbone(family: str, **overrides: Any) -> Pretrainer:
    torch.manual_seed(0)
    return Pretrainer(build(family, **FAMILIES[family], **overrides), toys.objective(), OptimizerRecipe())


def parts(module: Pretrainer) -> tuple[Any, Any]:
    return module.step, module.optimizer


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# What is predicted is what a training takes


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}], ids=["float32", "accumulated bf16"]
)
def test_a_training_under_lightning_takes_what_was_predicted(tmp_path, options):
    module = toys.pretrainer(MANY, freeze_prototypes_epochs=0)
    accumulate, precision = options.get("accumulate_grad_batches", 1), options.get("precision", "32-true")
    need = predict(*parts(module), sides=toys.SIDES, batch_size=4, accumulate=accumulate, precision=precision)
    trainer = toys.trainer(tmp_path, max_epochs=1, **options)
    weights = size_of([*module.parameters(), *module.buffers()])
    measured = weights + memory.profiled_peak(lambda: trainer.fit(module, toys.loader(16, 4)))
    assert trainer.global_step >= 2
    assert need.predicted_bytes == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("family", ["vil", "test_resnet", "test_vit", *SLOW])
def test_steps_of_every_family_take_what_was_predicted(family):
    # On some CPUs a convolution takes megabytes of its own, which would be much of a small ResNet's step.
    how = {"sides": (64, 64), "batch_size": 16} if family == "test_resnet" else {"sides": PAIR, "batch_size": 4}
    need = compare(*parts(with_backbone(family)), **how)
    assert need.error < 0.1
    assert need.error == pytest.approx(abs(need.predicted_bytes / need.measured_bytes - 1))


def test_activations_that_are_computed_again_are_not_kept():
    module = with_backbone("test_vit", depth=4)
    kept = predict(*parts(module), sides=(64, 64), batch_size=8)
    module.student.backbone.set_grad_checkpointing()
    again = compare(*parts(module), sides=(64, 64), batch_size=8)
    assert again.error < 0.1
    assert again.activations_bytes < 0.6 * kept.activations_bytes


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{}, {"region_weight": 0.0, "view_weight": 1.0}], ids=["view_region", "view"])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_swin_tiny_takes_what_was_predicted(batch_size, loss):
    torch.manual_seed(0)
    module = Pretrainer(build("swin"), EsViTObjective(**loss), OptimizerRecipe())
    assert compare(*parts(module), sides=RELEASED, batch_size=batch_size).error < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{}, {"region_weight": 0.0, "view_weight": 1.0}], ids=["view_region", "view"])
@pytest.mark.parametrize("backbone", ["swin_micro_w7", "cvt_tiny_w7", "vil_tiny", "deit_small_p16", "resnet50"])
def test_every_architecture_takes_what_was_predicted(backbone, loss):
    from esvit_pl.api import compose

    node = dict(compose("pretrain", f"backbone={backbone}").backbone)
    node.pop("_target_")
    torch.manual_seed(0)
    module = Pretrainer(build(**node), EsViTObjective(num_prototypes=4096, **loss), OptimizerRecipe())
    assert compare(*parts(module), sides=RELEASED, batch_size=2).error < 0.1


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", ["swin_micro_w7", "vit_small_patch16_224", "resnet50"])
def test_a_pass_takes_what_was_predicted(name, autocast):
    from esvit_pl.api import compose

    node = dict(compose("pretrain", f"backbone={name}").backbone) if "micro" in name else {"name": name}
    node.pop("_target_", None)
    backbone, images = build(**node).eval(), torch.randn(2, 3, 224, 224)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", autocast, enabled=autocast is not None):
            backbone(images)

    run()
    measured = size_of([*backbone.parameters(), *backbone.buffers(), images]) + memory.profiled_peak(run)
    needed = predict_pass(backbone.to("meta"), batch_size=2, autocast=autocast)
    assert needed == pytest.approx(measured, rel=0.1)


# What it is made of


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 2), ("lars", 1)])
def test_parts_are_those_of_the_parameters(optimizer, copies):
    module = toys.pretrainer(optimizer={"name": optimizer})
    need = predict(*parts(module), sides=toys.SIDES, batch_size=4, accumulate=2)
    learning = [p for p in module.student.parameters() if p.requires_grad]
    steps = 4 * len(learning) if optimizer == "adamw" else 0  # AdamW counts them for each parameter
    assert need.weights_bytes == size_of([*module.parameters(), *module.buffers()])
    assert need.gradients_bytes == size_of(learning)  # of the micro-batch before
    assert need.optimizer_bytes == copies * size_of(learning) + steps
    assert need.views_bytes == 4 * 4 * 3 * sum(side**2 for side in toys.SIDES)
    kinds = (need.weights_bytes, need.gradients_bytes, need.optimizer_bytes, need.views_bytes, need.activations_bytes)
    assert need.predicted_bytes == sum(kinds)
    assert need.activations_bytes > 0


@pytest.mark.slow
def test_activations_and_views_grow_with_the_batch_and_nothing_else_does():
    one, two, three = (predict(*parts(small()), sides=PAIR, batch_size=8 * size) for size in (1, 2, 3))
    assert two.weights_bytes == one.weights_bytes
    assert two.views_bytes == 2 * one.views_bytes
    steps = [b.activations_bytes - a.activations_bytes for a, b in ((one, two), (two, three))]
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    assert steps[0] > one.views_bytes


def test_gradients_of_an_earlier_micro_batch_are_there_all_the_time():
    module = toys.pretrainer({**MANY, "region_weight": 0.0})
    alone = compare(*parts(module), sides=PAIR, batch_size=2)
    second = compare(*parts(module), sides=PAIR, batch_size=2, accumulate=2)
    assert max(alone.error, second.error) < 0.02
    assert second.predicted_bytes > 1.05 * alone.predicted_bytes


def test_waiting_heads_and_prototypes_are_counted_as_if_they_had_joined():
    later = toys.pretrainer({"region_start_epoch": 1}, freeze_prototypes_epochs=1)
    now = toys.pretrainer({"region_start_epoch": 0}, freeze_prototypes_epochs=0)
    assert predict(*parts(later), sides=PAIR, batch_size=4) == predict(*parts(now), sides=PAIR, batch_size=4)


# Nothing is computed, and nothing stays


def test_a_module_without_weights_gives_the_same_numbers():
    with torch.device("meta"):
        empty = small()
    how = {"sides": PAIR, "batch_size": 4}
    predict(*parts(empty), **how)  # window plans are made once for all
    assert predict(*parts(empty), **how) == predict(*parts(small()), **how)


def test_a_batch_that_no_machine_could_hold_is_predicted():
    assert predict(*parts(small()), sides=PAIR, batch_size=10**7).predicted_bytes > 2**40


def test_module_generator_and_cached_plans_are_as_before():
    window_plan.cache_clear()
    module = small(network={"drop_path_rate": 0.5})
    before, draws = deepcopy(module.state_dict()), torch.get_rng_state()
    predict(*parts(module), sides=PAIR, batch_size=4)
    assert window_plan.cache_info().currsize > 0
    plan = window_plan(8, 8, 4, 0, torch.device("cpu"), torch.float32)
    assert {type(leaf) for leaf in tree_leaves(plan) if torch.is_tensor(leaf)} == {torch.Tensor}
    assert window_plan.cache_info().hits > 0  # so that it was one that the prediction left
    compare(*parts(module), sides=PAIR, batch_size=4)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and type(p.data) is torch.Tensor for p in module.parameters())
    assert module._trainer is None


# Errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sides": ()}, r"a step needs views, images and micro-batches, got sides=\[\]"),
        ({"batch_size": 0}, "got sides=.*, batch_size=0"),
        ({"accumulate": 0}, "accumulate=0; give 1 or more"),
        ({"precision": "16-true"}, "no memory is known for precision '16-true'; choose one of 32-true, bf16-mixed"),
    ],
)
def test_steps_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        predict(*parts(toys.pretrainer()), **{"sides": toys.SIDES, "batch_size": 4, **wrong})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_is_predicted_where_there_is_cuda():
    with pytest.raises(ValueError, match="predicted where there is CUDA"):
        predict(*parts(toys.pretrainer()), sides=toys.SIDES, batch_size=4, device="cuda")
