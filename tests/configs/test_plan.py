"""The plan of a training is what the training then does."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch

import esvit_pl
from esvit_pl.configs import plan
from esvit_pl.profiling import available_memory, memory
from esvit_pl.profiling.memory import Need

GIB = 2**30


@pytest.fixture
def predicted(monkeypatch):
    """In place of a prediction of half a minute: 1 GiB of weights and optimizer, and half a GiB for each image."""

    def half_a_gib_each(step, recipe, *, batch_size, accumulate, **how):
        return Need(batch_size, accumulate, GIB + batch_size * GIB // 2, GIB, 0, 0, 0, batch_size * GIB // 2)

    monkeypatch.setattr(memory, "predict", half_a_gib_each)


def there(monkeypatch, *, memory=10**15, disk=10**15):
    """So many bytes are left."""
    monkeypatch.setattr(available_memory, "available_bytes", lambda device: memory)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk))


SMALL = ["backbone=swin_micro_32px", "loss.hidden_dim=16", "loss.out_dim=8", "loss.num_prototypes=16", "trainer=cpu"]


def compose(*words: str):
    return esvit_pl.compose("pretrain", "dataset=photographs", "augment=embedded", *words)


def test_a_dry_run_says_what_the_run_then_does_and_leaves_nothing(commands, pictures, pretrained):
    dry = commands.pretrain(pictures, "dry_run=true", "callbacks.checkpoint.every_n_epochs=1")
    assert dry.code == 0, dry.err
    assert not dry.folder.exists()
    lines = {line.split("  ")[0]: line for line in dry.out.splitlines()}
    assert "global batch 8 images (8 x 1 processes x 1 accumulated)" in pretrained.out
    assert lines["global batch"].endswith("8 images (8 x 1 processes x 1 accumulated)")
    assert "4 steps an epoch, 8 steps in 2 epochs, peak lr 0.000625 (0.02 per 256 images)" in pretrained.out
    assert lines["steps"].endswith("8 (4 an epoch, 2 epochs)")
    assert lines["peak learning rate"].endswith("0.000625 (0.02 per 256 images)")
    assert "(4 x " in lines["disk for checkpoints"]
    assert " at most, predicted (" in lines["memory per process"]
    assert "time an epoch" not in lines
    read = [line for line in pretrained.out.splitlines() if line.startswith(("data: ", "layout: "))]
    assert len(read) == 2
    assert {*read} <= {*lines.values()}
    assert len(list((pretrained.folder / "checkpoints").iterdir())) == 4
    assert lines["dry_run=true: nothing was started"]


def test_a_dry_run_says_where_a_training_goes_on_and_refuses_what_the_training_would(commands, pictures, pretrained):
    def dry(*words):
        return commands.pretrain(pictures, "dry_run=true", *words)

    before = sorted(pretrained.folder.rglob("*"))
    goes_on = dry(f"ckpt_path={pretrained.folder}")
    assert goes_on.code == 0, goes_on.err
    assert f"resuming {pretrained.last}, which is finished: step 8 of 8\n" in goes_on.out
    changed = dry(f"ckpt_path={pretrained.folder}", "optimizer.lr=0.5")
    assert "optimizer.lr: 0.02 in the checkpoint, 0.5 now" in changed.err
    allowed = dry(f"ckpt_path={pretrained.folder}", "optimizer.lr=0.5", "resume.allow=[optimizer.lr]")
    assert "  allowed to differ: optimizer.lr: 0.02 in the checkpoint, 0.5 now\n" in allowed.out
    assert "ckpt_path: no_such_model" in dry("ckpt_path=no_such_model").err
    assert sorted(pretrained.folder.rglob("*")) == before


def test_the_size_of_a_checkpoint_is_that_of_the_file(commands, pictures, pretrained):
    cfg = esvit_pl.compose("pretrain", *commands.tiny_pretraining(pictures))
    planned, real = plan.make(cfg), pretrained.last.stat().st_size
    held = torch.load(pretrained.last, weights_only=True)
    tensors = sum(plan.size(value) for value in held["state_dict"].values())
    assert planned.weights == tensors
    states = held["optimizer_states"][0]["state"].values()
    moments = sum(plan.size(state[name]) for state in states for name in ("exp_avg", "exp_avg_sq"))
    assert planned.optimizer_state == moments
    assert planned.checkpoint < real < planned.checkpoint + 200_000  # names, config, loops


@pytest.mark.usefixtures("predicted")
def test_the_published_run_of_swin_b_by_hand():
    words = ["backbone=swin_base_w14", "trainer=ddp", "trainer.devices=16", "trainer.num_nodes=4"]
    made = plan.make(compose(*words, "datamodule.batch_size=8", "callbacks=checkpoint"))
    assert (made.processes, made.global_batch, made.lr) == (64, 512, 0.001)
    assert (made.steps_per_epoch, made.steps, made.epochs) == (4672 // 512, 9 * 300, 300)
    head = 1024 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 256 + 256 + 65536 * 256 + 65536  # gain and direction
    assert made.heads == 2 * head
    assert made.gradients == 4 * (made.backbone + made.heads)
    assert made.optimizer_state == 2 * made.gradients
    assert made.checkpoints == 8
    assert made.disk == 8 * made.checkpoint


@pytest.mark.usefixtures("predicted")
def test_a_training_that_starts_late_is_shorter():
    words = ["init_from=L_V.pth", "start_epoch=200", "callbacks=checkpoint", "datamodule.batch_size=64"]
    whole, late = plan.make(compose(*words[2:])), plan.make(compose(*words))  # no weight is read
    assert (late.steps, late.epochs) == (whole.steps_per_epoch * 100, 100)
    assert (whole.checkpoints, late.checkpoints) == (8, 4)
    with pytest.raises(ValueError, match=r"start_epoch=200 leaves out the first epochs, .* give init_from="):
        plan.make(compose("start_epoch=200"))


@pytest.mark.usefixtures("predicted")
def test_parameters_under_two_names_are_counted_once():
    made = plan.make(compose("backbone=vil_tiny", "loss=view", "augment=multi_crop"))
    assert made.backbone == 27_569_352
    assert made.weights == 4 * (2 * (made.backbone + made.heads) + 65536)  # student, teacher, one centre


@pytest.mark.usefixtures("predicted")
def test_accumulation_limits_and_steps_count():
    made = plan.make(
        compose("trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=11", "trainer.max_epochs=10")
    )
    assert (made.global_batch, made.steps_per_epoch, made.steps) == (128, 5, 50)
    endless = plan.make(compose("trainer.max_epochs=-1", "trainer.max_steps=146"))
    assert (endless.steps, endless.epochs) == (146, 2)
    sgd = plan.make(compose("optimizer=sgd", "callbacks=none"))
    assert sgd.optimizer_state == sgd.gradients
    assert sgd.checkpoints == 0


@pytest.mark.usefixtures("predicted")
def test_memory_that_does_not_suffice_is_said_with_the_settings_that_keep_the_global_batch(monkeypatch):
    words = [*SMALL, "datamodule.batch_size=64", "trainer.accumulate_grad_batches=2"]
    there(monkeypatch, memory=20 * GIB)
    made = plan.make(compose(*words))
    assert (made.memory, made.available_memory) == (33 * GIB, 20 * GIB)
    fits = "32 fits (17.0 GiB): datamodule.batch_size=32 trainer.accumulate_grad_batches=4"
    recomputed = "module.grad_checkpointing=true needs 33.0 GiB with the same batch; too much still, but it helps"
    first = f"memory: batch 64 needs 33.0 GiB; 20.0 GiB are available. {fits}"
    assert made.warnings == (first, f"memory: {recomputed}")
    assert f"\nwarning: {first}\n" in str(made)
    there(monkeypatch, memory=40 * GIB)
    assert plan.make(compose(*words)).warnings == ()


@cache
def size_of_a_checkpoint() -> int:
    return plan.make(compose(*SMALL)).checkpoint


@pytest.mark.usefixtures("predicted")
@pytest.mark.parametrize(
    ("files", "said"),
    [
        (8.9, ()),
        (8, ("every_n_epochs=51 keeps as many as fit",)),
        (4, ("every_n_epochs=151 keeps",)),
        (2.5, ("callbacks.checkpoint.every_n_epochs=0 keeps the last two alone",)),
        (2, ("not even two fit; choose another disk with paths.log_dir=FOLDER",)),
    ],
)
def test_a_disk_that_does_not_suffice_is_said_with_the_interval_that_does(monkeypatch, files, said):
    there(monkeypatch, disk=files * size_of_a_checkpoint())
    made = plan.make(compose(*SMALL))
    assert made.checkpoints == 8
    assert len(made.warnings) == len(said)
    assert all(text in line for text, line in zip(said, made.warnings, strict=True))


@pytest.mark.parametrize(
    ("epochs", "files"), [(1, 2), (9, 2), (12, 3), (80, 6), (90, 6), (100, 7), (300, 8), (800, 6), (5000, 7)]
)
def test_a_long_training_leaves_fewer_than_ten_checkpoints_and_a_given_interval_counts(epochs, files):
    cfg = compose(f"trainer.max_epochs={epochs}")
    assert plan.kept_checkpoints(cfg, 0, epochs) == files
    given = compose(f"trainer.max_epochs={epochs}", "callbacks.checkpoint.every_n_epochs=10")
    assert plan.kept_checkpoints(given, 0, epochs) == epochs // 10 + 2


@pytest.mark.usefixtures("predicted")
def test_heads_out_of_proportion_are_named():
    words = ["backbone=swin_micro_w7", "augment=multi_crop"]
    assert any("43.9 M parameters of heads are out of" in line for line in plan.make(compose(*words)).warnings)
    small = ["loss.hidden_dim=256", "loss.out_dim=64", "loss.num_prototypes=256"]
    assert not any("heads" in line for line in plan.make(compose(*words, *small)).warnings)


def test_a_precision_of_which_no_memory_is_known_ends_no_plan():
    made = plan.make(compose(*SMALL, "trainer.precision=bf16-true"))
    assert made.memory is None
    assert made.warnings[0].startswith("memory was not predicted: no memory is known for precision 'bf16-true'")
    assert "unknown beyond student, teacher and centres" in str(made)


def test_a_timed_plan_says_how_long_an_epoch_takes(commands, pictures):
    outcome = commands.pretrain(pictures, "dry_run=timed")
    assert outcome.code == 0, outcome.err
    assert "dry_run=timed: nothing was started" in outcome.out
    made = plan.make(esvit_pl.compose("pretrain", *commands.tiny_pretraining(pictures)), timed=True)
    assert made.epoch_seconds == pytest.approx(4 * (made.step_seconds + made.loading_seconds))
    assert 0 < made.loading_seconds < 60
    assert 0 < made.step_seconds < 60
    assert commands.pretrain(pictures, "dry_run=time").err.count("dry_run=time is neither true, false nor timed") == 1


def test_what_the_training_would_refuse_the_plan_refuses():
    with pytest.raises(ValueError, match="one step needs 5120 images .* and there are 4672"):
        plan.make(compose("trainer=ddp", "trainer.devices=80"))
    with pytest.raises(ValueError, match="loss.region_start_epoch=300 lies at or after the end of training"):
        plan.make(compose("loss.region_start_epoch=300"))
