from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from esvit_pl.augment import Recipe
from esvit_pl.backbones import Backbone, Features
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.modules.pretrain import NonFiniteLoss, Pretrainer
from esvit_pl.optim import OptimizerRecipe


class AtStep(pl.Callback):
    """Calls a function with the module at the end of every optimizer step."""

    def __init__(self, look) -> None:
        self.look = look

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.look(trainer.global_step, module)


class StopAfter(pl.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def fit(module: Pretrainer, tmp_path, *, length=16, batch_size=8, dtype=torch.float32, ckpt_path=None, **options):
    trainer = toys.trainer(tmp_path, **options)
    trainer.fit(module.to(dtype), toys.loader(length, batch_size, dtype), ckpt_path=ckpt_path, weights_only=True)
    return trainer


# One optimizer step, whatever it is made of


@pytest.mark.parametrize(
    ("dtype", "precision", "optimizer", "tolerance"),
    [
        (torch.float64, "64-true", {"name": "adamw"}, 1e-9),
        (torch.float32, "32-true", {"name": "sgd"}, 1e-5),
    ],
    ids=["float64-adamw", "float32-sgd"],
)
def test_two_times_eight_images_are_one_time_sixteen(tmp_path, dtype, precision, optimizer, tolerance):
    states = []
    for batch_size, accumulate in ((16, 1), (8, 2)):
        module = toys.pretrainer(optimizer=optimizer)
        options = {"accumulate_grad_batches": accumulate, "precision": precision, "max_epochs": 3}
        trainer = fit(module, tmp_path, length=48, batch_size=batch_size, dtype=dtype, **options)
        assert trainer.global_step == 9
        assert module.global_batch == 16
        states.append(toys.state(module))
    assert toys.largest_difference(*states) < tolerance
    assert toys.largest_difference(states[0], toys.state(toys.pretrainer())) > 1e-3  # it did move


def test_teacher_and_centers_move_once_per_optimizer_step(tmp_path):
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def look(step, module):
        seen.append(
            (step, module.teacher.heads["view"].mlp[0].weight.clone(), module.objective.centers["view"].value.clone())
        )

    module = toys.pretrainer(optimizer={"warmup_epochs": 0})
    fit(module, tmp_path, batch_size=4, accumulate_grad_batches=2, max_epochs=1, callbacks=[AtStep(look)])
    assert [step for step, *_ in seen] == [0, 1, 1, 2]
    for part in (1, 2):
        assert torch.equal(seen[1][part], seen[2][part])
        assert not torch.equal(seen[0][part], seen[1][part])
        assert not torch.equal(seen[2][part], seen[3][part])


def test_the_teacher_follows_the_student_after_the_step(tmp_path):
    states = {}

    def look(step, module):
        states[step] = (toys.state(module.student), toys.state(module.teacher))

    module = toys.pretrainer(momentum=0.5)
    states[0] = (toys.state(module.student), toys.state(module.teacher))
    trainer = fit(module, tmp_path, max_epochs=2, callbacks=[AtStep(look)])
    for step in range(trainer.global_step):
        momentum = 1 - (1 - 0.5) * (1 + math.cos(math.pi * step / 4)) / 2
        key = "backbone.patch_embed.proj.weight"
        wanted = momentum * states[step][1][key] + (1 - momentum) * states[step + 1][0][key]
        assert torch.allclose(states[step + 1][1][key], wanted, atol=1e-7)


def test_after_three_updates_every_buffer_of_the_teacher_is_its_own(tmp_path):
    """Batch norm counts its own batches, and relative_position_index keeps its integers."""
    module = toys.pretrainer(loss={"batch_norm": True})
    index = module.teacher.backbone.layers[0].blocks[0].attn.relative_position_index.clone()
    fit(module, tmp_path, length=24, max_epochs=1)
    assert torch.equal(module.teacher.backbone.layers[0].blocks[0].attn.relative_position_index, index)
    mine, theirs = module.teacher.heads["view"].mlp[1], module.student.heads["view"].mlp[1]
    assert isinstance(mine, nn.BatchNorm1d)
    assert mine.num_batches_tracked.item() == theirs.num_batches_tracked.item() == 3
    assert not torch.allclose(mine.running_mean, theirs.running_mean)  # it saw global views only


def test_prototypes_stand_still_in_the_first_epoch(tmp_path):
    directions, optimizer_states = {}, {}

    def look(step, module):
        prototypes = module.student.heads["view"].prototypes.direction
        directions[step] = prototypes.detach().clone()
        optimizer_states[step] = len(module.optimizers().state.get(prototypes, {}))

    module = toys.pretrainer(freeze_prototypes_epochs=1)
    first = module.student.heads["view"].prototypes.direction.detach().clone()
    fit(module, tmp_path, max_epochs=2, callbacks=[AtStep(look)])
    assert torch.equal(directions[2], first)
    assert optimizer_states[2] == 0
    assert not torch.equal(directions[3], first)
    assert optimizer_states[3] > 0


# The region loss that joins later


def region_weights(module):
    return {
        name: value for name, value in toys.state(module).items() if "heads.region" in name or "centers.region" in name
    }


def test_before_the_region_loss_joins_its_head_stands_still(tmp_path):
    losses, regions, with_state = {}, {}, {}

    def look(step, module):
        losses[step] = {k: v.item() for k, v in module.trainer.callback_metrics.items() if k.endswith("_loss")}
        regions[step] = region_weights(module)
        head = module.student.heads["region"].parameters()
        with_state[step] = any(module.optimizers().state.get(p) for p in head)

    module = toys.pretrainer(loss={"region_start_epoch": 1})
    first = region_weights(module)
    fit(module, tmp_path, max_epochs=2, callbacks=[AtStep(look)])
    assert set(losses[2]) == {"train/view_loss"}
    assert toys.largest_difference(regions[2], first) == 0  # student, teacher and centre alike
    assert not with_state[2]
    assert all(p.requires_grad for p in module.student.heads["region"].parameters())
    assert set(losses[3]) == {"train/view_loss", "train/region_loss"}
    assert toys.largest_difference(regions[3], first) > 0
    assert with_state[3]


def test_before_the_region_loss_joins_training_is_that_of_the_view_loss(tmp_path):
    joint = toys.pretrainer(loss={"region_start_epoch": 2})
    alone = toys.pretrainer(loss={"region_weight": 0.0, "view_weight": 1.0})
    shared = {name: value for name, value in toys.state(joint).items() if name in alone.state_dict()}
    alone.load_state_dict(shared)
    fit(joint, tmp_path, max_epochs=3, callbacks=[StopAfter(2)])
    fit(alone, tmp_path, max_epochs=3, callbacks=[StopAfter(2)])
    mine = {name: value for name, value in toys.state(joint).items() if name in shared}
    assert toys.largest_difference(mine, toys.state(alone)) < 1e-6


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(tmp_path, stop):
    """At the border where the region loss joins (epoch 2) and before it; with stochastic depth."""

    def module():
        return toys.pretrainer(loss={"region_start_epoch": 2}, network={"drop_path_rate": 0.3}, seed=7)

    whole = module()
    fit(whole, tmp_path, max_epochs=4)
    saver = ModelCheckpoint(tmp_path / str(stop), save_last=True)
    fit(module(), tmp_path, max_epochs=4, callbacks=[StopAfter(stop), saver], enable_checkpointing=True)
    torch.manual_seed(99)
    resumed = module()
    fit(resumed, tmp_path, max_epochs=4, ckpt_path=tmp_path / str(stop) / "last.ckpt")
    assert toys.largest_difference(toys.state(whole), toys.state(resumed)) == 0


# A later epoch than the first


@pytest.mark.filterwarnings("ignore:.*no `validation_step`", "ignore:.*does not have many workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_that_starts_at_epoch_2_sees_what_that_epoch_sees(tmp_path, workers):
    """Images in their order, crops, schedules, counters; with two micro-batches a step."""
    images = torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = Splits(ArrayDataset(images, [f"{i}.png" for i in range(8)]))
    recipe = Recipe(num_local=1, global_size=16, local_size=8)

    class Record(pl.Callback):
        def __init__(self) -> None:
            self.seen, self.lr = [], []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            views = [view.sum().item() for view in batch["views"]]
            self.seen.append((trainer.current_epoch, trainer.global_step, batch["index"].tolist(), views))
            self.lr.append(module.optimizer.lr_at(module.progress, global_batch=module.global_batch))

    def seen(**settings):
        record = Record()
        data = ImageDataModule(splits, recipe, batch_size=2, num_workers=workers)
        trainer = toys.trainer(tmp_path, max_epochs=4, accumulate_grad_batches=2, callbacks=[record])
        trainer.fit(toys.pretrainer(**settings), data)
        return record.seen, record.lr

    whole, late = seen(), seen(start_epoch=2)
    assert late == tuple(column[8:] for column in whole)
    assert late[0][-1][:2] == (3, 8)


def test_a_training_that_started_late_is_resumed_where_it_stopped(tmp_path):
    whole = toys.pretrainer(start_epoch=2)
    fit(whole, tmp_path, max_epochs=5)
    saver = ModelCheckpoint(tmp_path / "stopped", save_last=True)
    fit(
        toys.pretrainer(start_epoch=2),
        tmp_path,
        max_epochs=5,
        callbacks=[StopAfter(4), saver],
        enable_checkpointing=True,
    )
    resumed = toys.pretrainer(start_epoch=2)
    trainer = fit(resumed, tmp_path, max_epochs=5, ckpt_path=tmp_path / "stopped" / "last.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (5, 10)
    assert toys.largest_difference(toys.state(whole), toys.state(resumed)) == 0


def test_a_start_after_the_end_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"start_epoch=2 lies at or after the end of training \(trainer.max_epochs=2\)"
    ):
        fit(toys.pretrainer(start_epoch=2), tmp_path, max_epochs=2)


def test_a_region_loss_that_would_never_join_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"region_start_epoch=2 .* \(trainer.max_epochs=2\).* or loss=view"):
        fit(toys.pretrainer(loss={"region_start_epoch": 2}), tmp_path, max_epochs=2)


# Two processes


def _train(dtype: torch.dtype, precision: str, path, strategy: str, devices: int, batch_size: int, **parts) -> dict:
    module = toys.pretrainer(**parts).to(dtype)
    options = {"strategy": strategy, "devices": devices, "precision": precision, "max_epochs": 3}
    toys.trainer(path, **options).fit(module, toys.loader(48, batch_size, dtype))
    return toys.state(module)


@pytest.mark.parametrize(
    ("dtype", "precision", "optimizer", "tolerance"),
    [
        (torch.float64, "64-true", "adamw", 1e-9),
        pytest.param(torch.float32, "32-true", "sgd", 1e-5, marks=pytest.mark.slow),
    ],
    ids=["float64-adamw", "float32-sgd"],
)
def test_two_processes_are_one_at_the_same_global_batch(tmp_path, dtype, precision, optimizer, tolerance):
    """With the region loss joining in the second epoch, so that a head waits under DDP first."""
    parts = {"loss": {"region_start_epoch": 1}, "optimizer": {"name": optimizer}}
    one = _train(dtype, precision, tmp_path, "auto", 1, 16, **parts)
    two = _train(dtype, precision, tmp_path, "ddp_spawn", 2, 8, **parts)
    assert toys.largest_difference(one, two) < tolerance
    assert toys.largest_difference(one, toys.state(toys.pretrainer(**parts).to(dtype))) > 1e-3


# Precision


@pytest.mark.parametrize("precision", [32, "bf16-mixed"])
def test_losses_are_computed_in_float32_whatever_the_networks_run_in(tmp_path, precision):
    seen: set[torch.dtype] = set()

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.update({outputs["loss"].dtype, *(value.dtype for value in outputs["diagnostics"].values())})

    module = toys.pretrainer()
    before = toys.state(module)
    fit(module, tmp_path, precision=precision, callbacks=[Look()])
    assert seen == {torch.float32}
    assert all(torch.isfinite(value).all() for value in toys.state(module).values())
    assert toys.largest_difference(before, toys.state(module)) > 1e-3
    assert all(p.dtype == torch.float32 for p in module.parameters())


def in_float16(scale: float):
    """16-mixed as on a GPU, loss scaling included."""
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


def test_gradients_are_clipped_after_the_loss_scale_is_taken_out(tmp_path):
    states = []
    for scale in (64.0, 4096.0):
        module = toys.pretrainer(optimizer={"name": "sgd", "lr": 2.0, "warmup_epochs": 0}, clip_grad=0.01)
        fit(module, tmp_path, plugins=[in_float16(scale)], max_epochs=1)
        states.append(toys.state(module))
    moved = toys.largest_difference(states[0], toys.state(toys.pretrainer()))
    assert toys.largest_difference(*states) < moved / 10  # float16 rounds; the scales differ by 64


def test_a_step_that_the_scaler_skips_still_moves_centre_and_teacher(tmp_path):
    module = toys.pretrainer(optimizer={"warmup_epochs": 0})
    before = toys.state(module)
    with torch.no_grad():  # so that the teacher has a way to go
        for p in module.student.parameters():
            p.add_(0.01)
    student = toys.state(module.student)
    fit(module, tmp_path, plugins=[in_float16(1e38)], max_epochs=1, length=8)
    after = toys.state(module)
    assert toys.largest_difference(student, toys.state(module.student)) == 0
    assert not torch.equal(after["objective.centers.view.value"], before["objective.centers.view.value"])
    name = "teacher.heads.view.mlp.0.weight"
    assert not torch.equal(after[name], before[name])


# What is not finite

OPTIMIZERS = ("adamw", "sgd", "lars")


def broken_loader(length: int, batch_size: int, image: int):
    """The loader of noise, of which one image holds a nan."""
    loader = toys.loader(length, batch_size)
    loader.dataset.__class__ = type("Broken", (toys.Noise,), {"__getitem__": lambda self, i: _broken(self, i, image)})
    return loader


def _broken(self, i, which):
    item = toys.Noise.__getitem__(self, i)
    if i == which:
        item["views"][0][0, 0, 0] = math.nan
    return item


class Plan(NamedTuple):
    """A training of 8 images a step whose only bad one is image `image`."""

    length: int
    image: int
    steps: int
    """As Lightning counts them, when the error comes."""
    message: str
    options: dict = {}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "plan",
    [
        Plan(24, 9, 2, r"step 1 \(epoch 0\)"),  # in the next step
        Plan(16, 9, 2, r"step 1 \(epoch 0\)"),  # at the end of an epoch
        Plan(16, 9, 2, r"step 1 \(epoch 0\)", {"max_epochs": 1}),  # at the end of the training
        Plan(32, 9, 2, r"step 1 \(epoch 0\)", {"max_epochs": 2, "max_steps": 2}),
        Plan(24, 1, 1, r"step 0 \(epoch 0\)", {"limit_train_batches": 1}),
        Plan(16, 5, 1, r"step 0 \(epoch 0\)", {"accumulate_grad_batches": 2, "limit_train_batches": 2}),  # 2nd half
    ],
    ids=["next step", "epoch end", "end", "max_steps", "first step", "micro-batch"],
)
def test_a_loss_that_is_not_finite_stops_at_the_latest_one_step_later(tmp_path, optimizer, plan):
    batch_size = 8 // plan.options.get("accumulate_grad_batches", 1)
    trainer = toys.trainer(tmp_path, **plan.options)
    module = toys.pretrainer(optimizer={"name": optimizer})
    with pytest.raises(NonFiniteLoss, match=plan.message):
        trainer.fit(module, broken_loader(plan.length, batch_size, plan.image))
    assert trainer.global_step == plan.steps
    assert trainer.fit_loop.epoch_progress.current.completed == 0  # before an epoch's last callbacks, which save


def test_nothing_is_saved_from_the_bad_step_on(tmp_path):
    saver = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_last=True, save_top_k=-1)
    trainer = toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True)
    with pytest.raises(NonFiniteLoss, match=r"optimizer step 1 \(epoch 0\)"):
        trainer.fit(toys.pretrainer(), broken_loader(24, 8, 9))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["epoch=0-step=1.ckpt", "last.ckpt"]
    saved = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
    with pytest.raises(NonFiniteLoss, match="optimizer step 1"):
        trainer.save_checkpoint(tmp_path / "by_hand.ckpt")
    assert not (tmp_path / "by_hand.ckpt").exists()


@pytest.mark.parametrize("stop", ["should_stop", "exception"])
def test_no_checkpoint_is_written_after_a_bad_step_whatever_ends_the_training(tmp_path, stop):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = True
            if stop == "exception":
                raise KeyError("theirs")

    saver = ModelCheckpoint(tmp_path / "kept", save_last=True, save_on_exception=True)
    trainer = toys.trainer(tmp_path, callbacks=[Stop(), saver], enable_checkpointing=True)
    with pytest.raises(NonFiniteLoss, match="optimizer step 0"):
        trainer.fit(toys.pretrainer(), broken_loader(16, 8, 1))
    assert not (tmp_path / "kept").exists() or not list((tmp_path / "kept").iterdir())


def test_a_run_resumes_from_the_last_checkpoint_before_a_bad_step(tmp_path):
    """The picture that was broken is mended, and the run ends like one that never saw it."""
    whole, resumed = toys.pretrainer(), toys.pretrainer()
    fit(whole, tmp_path, length=24)
    saver = ModelCheckpoint(tmp_path / "kept", save_last=True)
    trainer = toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True)
    loader = broken_loader(24, 8, -1)

    class BreakLater(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                loader.dataset.__class__ = broken_loader(24, 8, 9).dataset.__class__

    trainer.callbacks.append(BreakLater())
    with pytest.raises(NonFiniteLoss, match=r"optimizer step 4 \(epoch 1\)"):
        trainer.fit(toys.pretrainer(), loader)
    fit(resumed, tmp_path, length=24, ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert toys.largest_difference(toys.state(whole), toys.state(resumed)) == 0


# What the host waits for


class WatchSteps(pl.Callback):
    """Runs `mode` from start to end of a batch, but not in an epoch's first step, where Lightning resets its log."""

    def __init__(self, mode) -> None:
        self.mode, self.batches, self.inside = mode, 0, False

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.inside = batch_idx >= trainer.accumulate_grad_batches
        if self.inside:
            self.mode.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches += self.inside
        self._leave()

    def on_exception(self, trainer, module, exception):
        self._leave()

    def _leave(self) -> None:
        if self.inside:
            self.mode.__exit__(None, None, None)
        self.inside = False


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated")
@pytest.mark.parametrize("loss", [{"region_weight": 0.0}, {}], ids=["view", "view_region"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_for_the_device(tmp_path, loss, optimizer):
    """Without a progress bar and between two lines of a logger, which read the losses that they show."""
    watch = WatchSteps(toys.NoWait())
    module = toys.pretrainer(loss=loss, optimizer={"name": optimizer}, network={"drop_path_rate": 0.3})
    fit(module, tmp_path, length=32, callbacks=[watch], accumulate_grad_batches=2, log_every_n_steps=1000)
    assert watch.batches == 4


def test_a_host_that_reads_the_flag_is_seen_to_wait(tmp_path, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr("esvit_pl.modules.nonfinite.LateValue", lambda flag: SimpleNamespace(read=lambda: bool(flag)))
    module = toys.pretrainer()
    with pytest.raises(AssertionError, match="_local_scalar_dense waits for the GPU"):
        fit(module, tmp_path, callbacks=[WatchSteps(toys.NoWait())])


class ErrorOnSync:
    """CUDA's own check of the same."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("loss", [{"region_weight": 0.0}, {}], ids=["view", "view_region"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_step_waits_for_a_gpu(tmp_path, loss, name, precision):
    """With ``fused=None``, as every config has it."""
    watch = WatchSteps(ErrorOnSync())
    module = toys.pretrainer(loss=loss, optimizer={"name": name}, network={"drop_path_rate": 0.3})
    options = {"accelerator": "gpu", "precision": precision, "log_every_n_steps": 1000}
    try:
        fit(module, tmp_path, length=32, callbacks=[watch], accumulate_grad_batches=2, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.batches == 4


# Checks


class Unused(Backbone):
    """A backbone with a part that no feature needs."""

    def __init__(self) -> None:
        super().__init__()
        self.width = self.region_width = 4
        self.spec = {"name": "unused"}
        self.used, self.classifier = nn.Linear(3, 4), nn.Linear(4, 10)

    def forward(self, x):
        regions = self.used(x[..., ::8, ::8].flatten(2).mT)
        return Features(regions.mean(1), regions, (x.shape[-2] // 8, x.shape[-1] // 8))


def test_parameters_without_gradient_are_named_at_the_first_step(tmp_path):
    module = Pretrainer(Unused(), toys.objective(region_start_epoch=1), OptimizerRecipe(warmup_epochs=1))
    with pytest.raises(ValueError, match=r"2 trainable .*backbone.classifier.weight, backbone.classifier.bias; set"):
        fit(module, tmp_path)
    module.student.backbone.classifier.requires_grad_(False)
    fit(module, tmp_path)


def test_schedules_are_logged_from_their_functions(tmp_path):
    logged = {}

    def look(step, module):
        logged[step] = {k: float(v) for k, v in module.trainer.callback_metrics.items()}

    module = toys.pretrainer()
    fit(module, tmp_path, length=32, max_epochs=4, callbacks=[AtStep(look)])
    peak = 0.05 * 8 / 256
    assert [logged[step]["train/lr"] for step in (1, 4, 5)] == pytest.approx([0.0, peak, peak])
    late = module.progress._replace(step=15)
    assert logged[16]["train/lr"] == pytest.approx(module.optimizer.lr_at(late, global_batch=8))
    assert [logged[step]["train/teacher_temp"] for step in (1, 5)] == pytest.approx([0.04, 0.07])
    assert logged[1]["train/weight_decay"] == pytest.approx(0.04)
    assert logged[1]["train/teacher_momentum"] == pytest.approx(0.996)
    assert {"train/view_teacher_entropy", "train/region_kl", "train/matched_share"} <= set(logged[1])


def test_a_step_returns_what_callbacks_read(tmp_path):
    outputs = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, module, out, batch, batch_idx):
            outputs.append(out)

    fit(toys.pretrainer(), tmp_path, length=8, max_epochs=1, callbacks=[Keep()])
    assert outputs[0]["embedding"].shape == (8, 16)
    assert outputs[0]["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert outputs[0]["diagnostics"]["view_kl"] > 0


def test_the_plan_is_printed_before_the_first_step(tmp_path, capsys):
    fit(toys.pretrainer(), tmp_path, length=32, batch_size=8, accumulate_grad_batches=2, max_epochs=3)
    out = capsys.readouterr().out
    assert "global batch 16 images (8 x 1 processes x 2 accumulated), 2 steps an epoch, 6 steps in 3 epochs" in out
    assert "peak lr 0.003125 (0.05 per 256 images)" in out


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ({"optimizer": {"warmup_epochs": 5}}, {}, r"warmup_epochs=5 is longer than training \(trainer.max_epochs=2\)"),
        ({}, {"gradient_clip_val": 1.0}, "gradient_clip_val=1.0 beside the pretrainer's own"),
        ({}, {"accumulate_grad_batches": 3}, "2 batches an epoch are no multiple of trainer.accumulate_grad_batches=3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, parts, options, message):
    with pytest.raises(ValueError, match=message):
        fit(toys.pretrainer(**parts), tmp_path, **options)


def test_a_teacher_that_shares_storage_is_refused(tmp_path):
    module = toys.pretrainer()
    module.teacher.backbone = module.student.backbone
    with pytest.raises(ValueError, match="teacher shares storage with the student"):
        fit(module, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("momentum", 1.5), ("clip_grad", -1.0), ("freeze_prototypes_epochs", -1), ("start_epoch", -1)]
)
def test_impossible_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} .*got {value}"):
        toys.pretrainer(**{name: value})


def test_a_checkpoint_of_another_backbone_is_refused_and_says_how_it_differs(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    fit(toys.pretrainer(), tmp_path, callbacks=[saver], enable_checkpointing=True)
    other = toys.pretrainer(network={"window": 2, "depths": [1, 2]}, loss={"num_prototypes": 10})
    with pytest.raises(ValueError, match=r"another architecture") as error:
        fit(other, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    text = str(error.value)
    assert "backbone.depths: checkpoint [1, 1], now [1, 2]" in text
    assert "loss.num_prototypes: checkpoint 12, now 10" in text
    assert "weights: missing: teacher.backbone.layers.1.blocks.1.norm1.weight" in text


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    fit(toys.pretrainer(optimizer={"name": "lars"}), tmp_path, callbacks=[saver], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"trained with optimizer=lars, and this training has optimizer=adamw; resume"):
        fit(toys.pretrainer(), tmp_path, ckpt_path=tmp_path / "last.ckpt")
