from __future__ import annotations

import math
from copy import deepcopy
from functools import cache, partial
from typing import Any

import pytest
import torch
import toys
from torch.utils._pytree import tree_leaves

from esvit_pl.backbones import build
from esvit_pl.backbones.swin_windows import window_plan
from esvit_pl.benchmarks import memory
from esvit_pl.benchmarks.memory import GIB, Need, Verdict, accumulation, available_bytes, compare, fits, judge, predict
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.objectives import EsViTObjective
from esvit_pl.optim import OptimizerRecipe

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


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# What is predicted is what a training takes


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}],
    ids=["float32", "accumulated bf16"],
)
def test_a_training_under_lightning_takes_what_was_predicted(tmp_path, options):
    module = toys.pretrainer(MANY, freeze_prototypes_epochs=0)
    accumulate, precision = options.get("accumulate_grad_batches", 1), options.get("precision", "32-true")
    need = predict(module, sides=toys.SIDES, batch_size=4, accumulate=accumulate, precision=precision)
    trainer = toys.trainer(tmp_path, max_epochs=1, **options)
    weights = size_of([*module.parameters(), *module.buffers()])
    measured = weights + memory.profiled_peak(lambda: trainer.fit(module, toys.loader(16, 4)))
    assert trainer.global_step >= 2
    assert need.predicted_bytes == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("family", ["vil", "test_resnet", "test_vit", *SLOW])
def test_steps_of_every_family_take_what_was_predicted(family):
    need = compare(with_backbone(family), sides=PAIR, batch_size=4)
    assert need.error < 0.1  # the most, 7 %, is the ViT's: a small batch, and a convolution's own memory
    assert need.error == pytest.approx(abs(need.predicted_bytes / need.measured_bytes - 1))


def test_activations_that_are_computed_again_are_not_kept():
    module = with_backbone("test_vit", depth=4)
    kept = predict(module, sides=(64, 64), batch_size=8)
    module.student.backbone.set_grad_checkpointing()
    again = compare(module, sides=(64, 64), batch_size=8)
    assert again.error < 0.1
    assert again.activations_bytes < 0.6 * kept.activations_bytes


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{}, {"region_weight": 0.0, "view_weight": 1.0}], ids=["view_region", "view"])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_swin_tiny_takes_what_was_predicted(batch_size, loss):
    torch.manual_seed(0)
    module = Pretrainer(build("swin"), EsViTObjective(**loss), OptimizerRecipe())
    assert compare(module, sides=RELEASED, batch_size=batch_size).error < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("loss", [{}, {"region_weight": 0.0, "view_weight": 1.0}], ids=["view_region", "view"])
@pytest.mark.parametrize("backbone", ["swin_micro_w7", "cvt_tiny_w7", "vil_tiny", "deit_small_p16", "resnet50"])
def test_every_architecture_takes_what_was_predicted(backbone, loss):
    from esvit_pl.api import compose

    node = dict(compose("pretrain", f"backbone={backbone}").backbone)
    node.pop("_target_")
    torch.manual_seed(0)
    module = Pretrainer(build(**node), EsViTObjective(num_prototypes=4096, **loss), OptimizerRecipe())
    assert compare(module, sides=RELEASED, batch_size=2).error < 0.1


# What it is made of


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 2), ("lars", 1)])
def test_parts_are_those_of_the_parameters(optimizer, copies):
    module = toys.pretrainer(optimizer={"name": optimizer})
    need = predict(module, sides=toys.SIDES, batch_size=4, accumulate=2)
    learning = [p for p in module.student.parameters() if p.requires_grad]
    steps = 4 * len(learning) if optimizer == "adamw" else 0  # AdamW counts them for each parameter
    assert need.weights_bytes == size_of([*module.parameters(), *module.buffers()])
    assert need.gradients_bytes == size_of(learning)  # of the micro-batch before
    assert need.optimizer_bytes == copies * size_of(learning) + steps
    assert need.views_bytes == 4 * 4 * 3 * sum(side**2 for side in toys.SIDES)
    parts = (need.weights_bytes, need.gradients_bytes, need.optimizer_bytes, need.views_bytes, need.activations_bytes)
    assert need.predicted_bytes == sum(parts)
    assert need.activations_bytes > 0


@pytest.mark.slow
def test_activations_and_views_grow_with_the_batch_and_nothing_else_does():
    one, two, three = (predict(small(), sides=PAIR, batch_size=8 * size) for size in (1, 2, 3))
    assert two.weights_bytes == one.weights_bytes
    assert two.views_bytes == 2 * one.views_bytes
    steps = [b.activations_bytes - a.activations_bytes for a, b in ((one, two), (two, three))]
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    assert steps[0] > one.views_bytes


def test_gradients_of_an_earlier_micro_batch_are_there_all_the_time():
    module = toys.pretrainer({**MANY, "region_weight": 0.0})
    alone = compare(module, sides=PAIR, batch_size=2)
    second = compare(module, sides=PAIR, batch_size=2, accumulate=2)
    assert max(alone.error, second.error) < 0.02
    assert second.predicted_bytes > 1.05 * alone.predicted_bytes


def test_waiting_heads_and_prototypes_are_counted_as_if_they_had_joined():
    later = toys.pretrainer({"region_start_epoch": 1}, freeze_prototypes_epochs=1)
    now = toys.pretrainer({"region_start_epoch": 0}, freeze_prototypes_epochs=0)
    assert predict(later, sides=PAIR, batch_size=4) == predict(now, sides=PAIR, batch_size=4)


# Nothing is computed, and nothing stays


def test_a_module_without_weights_gives_the_same_numbers():
    with torch.device("meta"):
        empty = small()
    how = {"sides": PAIR, "batch_size": 4}
    predict(empty, **how)  # window plans are made once for all
    assert predict(empty, **how) == predict(small(), **how)


def test_a_batch_that_no_machine_could_hold_is_predicted():
    assert predict(small(), sides=PAIR, batch_size=10**7).predicted_bytes > 2**40


def test_module_generator_and_cached_plans_are_as_before():
    window_plan.cache_clear()
    module = small(network={"drop_path_rate": 0.5})
    before, draws = deepcopy(module.state_dict()), torch.get_rng_state()
    predict(module, sides=PAIR, batch_size=4)
    assert window_plan.cache_info().currsize > 0
    plan = window_plan(8, 8, 4, 0, torch.device("cpu"), torch.float32)
    assert {type(leaf) for leaf in tree_leaves(plan) if torch.is_tensor(leaf)} == {torch.Tensor}
    assert window_plan.cache_info().hits > 0  # so that it was one that the prediction left
    compare(module, sides=PAIR, batch_size=4)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and type(p.data) is torch.Tensor for p in module.parameters())
    assert module._trainer is None


# What fits


def test_the_largest_batch_that_fits_is_found_in_a_few_predictions():
    asked: list[int] = []

    def along_a_line(batch: int) -> int:
        asked.append(batch)
        return 1000 + 70 * batch

    assert fits(along_a_line, 10_000, margin=0) == 128
    assert len(asked) <= 4
    assert fits(along_a_line, 10_000, margin=0.1) == 114
    assert fits(along_a_line, 10_000, margin=0, among=range(1, 101)) == 100
    assert fits(along_a_line, 10_000, margin=0, among=[1, 5, 127, 130, 500]) == 127
    assert fits(along_a_line, 1069, margin=0) == 0
    assert fits(along_a_line, 1070, margin=0, among=[1]) == 1


@pytest.mark.parametrize(
    "bytes_at",
    [
        lambda batch: max(5000, 70 * batch),  # the optimizer's step takes more than small batches do
        lambda batch: 100 + 70 * batch + batch**2 // 3,
        lambda batch: 100 + 70 * batch + 400 * math.isqrt(batch),
        lambda batch: 100 * 2 ** (batch // 10),
        lambda batch: 5000,
    ],
    ids=["bent", "curved up", "curved down", "steps", "flat"],
)
@pytest.mark.parametrize("available", [4999, 5000, 6037, 20_000])
def test_the_largest_that_fits_is_found_whatever_the_curve(bytes_at, available):
    seen: dict[int, int] = {}

    def recording(batch: int) -> int:
        seen[batch] = bytes_at(batch)
        return seen[batch]

    fitting = fits(recording, available, margin=0)
    assert fitting == max((batch for batch in range(1, 4097) if bytes_at(batch) <= available), default=0)
    assert fitting == 0 or seen[fitting] <= available
    assert len(seen) <= 20


@pytest.mark.parametrize(
    ("batch", "fitting", "split"),
    [(64, 24, (16, 4)), (64, 64, (64, 1)), (64, 100, (64, 1)), (96, 40, (32, 3)), (7, 6, (1, 7)), (1, 1, (1, 1))],
)
def test_a_batch_is_split_into_the_fewest_equal_parts_that_fit(batch, fitting, split):
    assert accumulation(batch, fitting) == split


def test_no_image_can_not_be_accumulated():
    with pytest.raises(ValueError, match="no micro-batch of a batch of 64 fits"):
        accumulation(64, 0)


def pretended(module: Any, *, batch_size: int, accumulate: int, **how: Any) -> Need:
    """0.7 GiB an image, 1 GiB for the rest, and another for gradients that are kept."""
    size = int((1 + 0.7 * batch_size + (accumulate > 1)) * GIB)
    return Need(batch_size, accumulate, size, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("available", "line"),
    [
        (60, "batch 64 needs 45.8 GiB; 60.0 GiB are available: it fits"),
        (
            48,
            "batch 64 needs 45.8 GiB; 48.0 GiB are available, 10 % of them to stay free. 32 fits (24.4 GiB): "
            "datamodule.batch_size=32 trainer.accumulate_grad_batches=2",
        ),
        (
            24,
            "batch 64 needs 45.8 GiB; 24.0 GiB are available. 16 fits (13.2 GiB): "
            "datamodule.batch_size=16 trainer.accumulate_grad_batches=4",
        ),
        (
            1,
            "batch 64 needs 45.8 GiB; 1.0 GiB are available. No batch fits, one image takes 2.7 GiB: choose a smaller "
            "backbone, fewer or smaller views (augment.num_local, augment.global_size), fewer prototypes "
            "(loss.num_prototypes), or trainer.precision=bf16-mixed",
        ),
    ],
)
def test_the_verdict_says_what_to_do(available, line):
    assert str(judge(toys.pretrainer(), batch=64, available_bytes=available * GIB, predict=pretended)) == line


def test_batch_norm_is_told_of_micro_batches():
    module = toys.pretrainer({"batch_norm": True})
    line = str(judge(module, batch=64, available_bytes=24 * GIB, predict=pretended))
    assert line.endswith("trainer.accumulate_grad_batches=4; batch norm then sees 16 images at a time")


def test_a_verdict_of_true_predictions():
    at = cache(partial(predict, small(), sides=PAIR))

    def remembered(module: Any, **how: Any) -> Need:
        return at(**how)

    limit = at(batch_size=3, accumulate=2).predicted_bytes
    how = {"available_bytes": limit, "margin": 0, "predict": remembered}
    assert judge(toys.pretrainer(), batch=4, **how) == Verdict(
        batch=4,
        needed_bytes=at(batch_size=4, accumulate=1).predicted_bytes,
        available_bytes=limit,
        micro_batch=2,
        accumulate=2,
        micro_bytes=at(batch_size=2, accumulate=2).predicted_bytes,
        batch_norm=False,
        margin=0,
    )
    at_once = at(batch_size=3, accumulate=1).predicted_bytes
    assert judge(toys.pretrainer(), batch=3, **how) == Verdict(3, at_once, limit, 3, 1, at_once, False, 0)


# What there is


def system(root: Any, available: int, files: dict[str, str]) -> Any:
    """/proc/meminfo with so many KiB, and files."""
    files = {"proc/meminfo": f"MemTotal: 999999 kB\nMemAvailable:   {available} kB\n", **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 5000 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "4096\n"}, 4096),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 5000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "8192",
            },
            8192,
        ),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096),  # inside a container
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4096\n",
                "sys/fs/cgroup/cpu/x/memory.limit_in_bytes": "1\n",
            },
            4096,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{2**63 - 4096}\n",  # no limit
            },
            5000 * 1024,
        ),
    ],
    ids=["no group", "group", "no limit", "group above", "container", "version 1", "version 1, no limit"],
)
def test_the_smaller_of_what_the_system_has_and_the_group_may_have(tmp_path, files, available):
    assert available_bytes("cpu", root=system(tmp_path, 5000, files)) == available


def test_this_machine_has_memory():
    assert 2**20 < available_bytes() < 2**50


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
        predict(toys.pretrainer(), **{"sides": toys.SIDES, "batch_size": 4, **wrong})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_is_predicted_where_there_is_cuda():
    with pytest.raises(ValueError, match="predicted where there is CUDA"):
        predict(toys.pretrainer(), sides=toys.SIDES, batch_size=4, device="cuda")


def test_a_margin_of_all_is_refused():
    with pytest.raises(ValueError, match="margin must be 0 or more and below 1, got 1"):
        fits(lambda batch: batch, 10, margin=1)
