"""The training step without a Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys
from torch import nn

from esvit_pl.augment import Recipe
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.objectives import Losses, Objective, Window
from esvit_pl.optim import OptimizerRecipe, parameter_groups
from esvit_pl.pretraining import PretrainingStep, in_order
from esvit_pl.schedules import Progress

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
NETWORK = {"drop_path_rate": 0.4, "depths": [1, 2]}


def data() -> ImageDataModule:
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (26, 3, 24, 24), dtype=torch.uint8, generator=noise)
    recipe = Recipe(num_local=1, global_size=16, local_size=8)
    return ImageDataModule(Splits(ArrayDataset(images, [f"{i}.png" for i in range(26)])), recipe, batch_size=4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loop_in_plain_torch_is_the_trainers_run_to_the_last_bit(tmp_path, accumulate):
    """Float64, stochastic depth, a region loss that joins late, prototypes that stand still first."""
    settings: dict[str, Any] = {"momentum": 0.9, "seed": 3, "freeze_prototypes_epochs": 1}
    loss = {"region_start_epoch": 1, "batch_norm": True}
    module = toys.pretrainer(loss=loss, network=NETWORK, **settings)
    options = {"max_epochs": 3, "precision": "64-true", "accumulate_grad_batches": accumulate}
    toys.trainer(tmp_path, **options).fit(module.double(), datamodule=data())

    torch.manual_seed(0)  # as toys.pretrainer does, before it draws the weights
    recipe = OptimizerRecipe(lr=0.05, warmup_epochs=1)
    step = PretrainingStep(toys.backbone(**NETWORK), toys.objective(**loss), **settings).double()
    optimizer = recipe.build(parameter_groups(step.student))
    images = data()
    loader = images.train_dataloader()
    for micro_batch in range(3 * 6):
        epoch, place = divmod(micro_batch, 6)
        if place == 0:
            images.set_epoch(epoch)
            batches = iter(loader)
        batch = next(batches)
        batch["views"] = [view.double() for view in batch["views"]]
        progress = Progress.at(micro_batch, batches_per_epoch=6, epochs=3, accumulate=accumulate)
        (step(batch, progress).total / accumulate).backward()
        if (micro_batch + 1) % accumulate == 0:
            recipe.set_(optimizer, progress, global_batch=4 * accumulate)
            step.before_optimizer(progress)
            optimizer.step()
            optimizer.zero_grad()
            step.finish(progress)

    assert toys.largest_difference(toys.state(step), toys.state(module)) == 0
    assert (
        toys.largest_difference(toys.state(step), toys.state(toys.pretrainer(loss=loss, network=NETWORK).double()))
        > 1e-3
    )


def test_a_step_reports_the_mean_over_its_micro_batches():
    step = PretrainingStep(toys.backbone(), toys.objective())
    progress = Progress(0, 4)
    losses = [
        step({"views": [torch.randn(2, 3, side, side) for side in toys.SIDES]}, progress).terms["view"] for _ in "ab"
    ]
    report = step.finish(progress)
    assert report.measures["view_loss"].item() == pytest.approx(sum(loss.item() for loss in losses) / 2)
    assert report.finite


class Memory(Objective):
    """Remembers its rows; without a teacher, with two micro-batches."""

    uses_teacher = False

    def __init__(self) -> None:
        super().__init__()
        self.spec = {"name": "memory"}
        self.register_buffer("rows", torch.zeros(0, 4))
        self._seen: list[torch.Tensor] = []

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        return nn.ModuleDict({"plain": nn.Linear(width, 4)})

    def forward(self, student, teacher, batch, progress):
        assert teacher is None
        self._seen.append(student.z["plain"][0].detach())
        return Losses({"plain": student.z["plain"][0].square().mean()}, {"plain": 1.0})

    def collect(self) -> Window:
        return Window(gather={"rows": torch.cat(self._seen)})

    def commit(self, window: Window) -> None:
        self.rows, self._seen = window.gather["rows"], []


def test_an_objective_without_a_teacher_remembers_what_it_gathers():
    step = PretrainingStep(toys.backbone(), Memory())
    assert step.teacher is None
    assert step.encoder is step.student.backbone
    for _ in range(2):
        step({"views": [torch.randn(3, 3, 32, 32)]}, Progress(0, 4)).total.backward()
    step.before_optimizer(Progress(0, 4))
    step.finish(Progress(0, 4))
    assert step.objective.rows.shape == (6, 4)
    assert step.outputs["embedding"].shape == (3, 16)


def test_what_ranks_gather_comes_in_the_order_of_one_process(monkeypatch):
    """Rank 0 saw the images 0-1 and 4-5, rank 1 the images 2-3 and 6-7."""
    monkeypatch.setattr("esvit_pl.pretraining.num_ranks", lambda: 2)
    monkeypatch.setattr(
        "esvit_pl.pretraining.gather_over_ranks", lambda rows: torch.cat([rows, torch.tensor([[2], [3], [6], [7]])])
    )
    assert in_order(torch.tensor([[0], [1], [4], [5]]), micro_batches=2).flatten().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.5}, "momentum between 0 and 1, got 1.5"),
        ({"warm_heads_epochs": -1.0}, "warm_heads_epochs of 0 or more, got -1.0"),
        ({"clip_grad": -1.0}, "clip_grad of 0 or more, got -1.0"),
        ({"clip_grad_of": "layer"}, "clip_grad_of 'parameter' or 'network', got 'layer'"),
        ({"momentum_schedule": "cosin"}, "module.momentum_schedule needs one of constant, linear, cosine, got 'cosin'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PretrainingStep(toys.backbone(), toys.objective(), **settings)


@pytest.mark.parametrize("of", ["parameter", "network"])
def test_gradients_are_clipped_each_by_its_own_norm_or_all_by_their_common_one(of):
    step = PretrainingStep(toys.backbone(), toys.objective(), clip_grad=0.01, clip_grad_of=of)
    step({"views": [torch.randn(2, 3, 32, 32) for _ in range(3)]}, Progress(9, 10)).total.backward()
    before = [p.grad.norm().item() for p in step.student.parameters() if p.grad is not None]
    step.before_optimizer(Progress(9, 10))
    after = [p.grad.norm().item() for p in step.student.parameters() if p.grad is not None]
    assert len(after) == len(before)
    if of == "parameter":
        assert after == pytest.approx([min(norm, 0.01) for norm in before], rel=1e-3)
    else:
        whole = sum(norm**2 for norm in before) ** 0.5
        assert after == pytest.approx([norm * 0.01 / whole for norm in before], rel=1e-3)
        assert whole > 0.01


def trained(tmp_path, **settings: Any) -> Any:
    module = toys.pretrainer(network=NETWORK, momentum=0.5, freeze_prototypes_epochs=0, **settings)
    toys.trainer(tmp_path, max_epochs=2).fit(module, datamodule=data())
    return module


def test_the_backbone_stands_still_while_its_heads_learn(tmp_path):
    module = toys.pretrainer(network=NETWORK)
    start = {name: weight.clone() for name, weight in module.student.state_dict().items()}
    warm = trained(tmp_path / "warm", warm_heads_epochs=2.0)
    moved = {name for name, weight in warm.student.state_dict().items() if not torch.equal(weight, start[name])}
    assert moved
    assert not [name for name in moved if name.startswith("backbone.")]
    teacher = warm.teacher.backbone.state_dict()
    assert all(torch.equal(weight, start[f"backbone.{name}"]) for name, weight in teacher.items())
    held = warm.trainer.optimizers[0].state
    assert not [p for p in warm.student.backbone.parameters() if p in held]  # and nothing is gathered for it
    half = trained(tmp_path / "half", warm_heads_epochs=1.0)
    assert any(not torch.equal(w, start[f"backbone.{n}"]) for n, w in half.student.backbone.state_dict().items())


def test_a_backbone_without_a_learning_rate_stays(tmp_path):
    module = toys.pretrainer(network=NETWORK)
    start = {name: weight.clone() for name, weight in module.student.state_dict().items()}
    still = trained(tmp_path, lr_factor=0.0)
    assert all(torch.equal(w, start[f"backbone.{n}"]) for n, w in still.student.backbone.state_dict().items())
    assert any(not torch.equal(w, start[n]) for n, w in still.student.state_dict().items())
