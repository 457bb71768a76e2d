"""The plan of a training is what the training then does."""

from __future__ import annotations

import pytest
import torch

import esvit_pl
from esvit_pl.configs import plan


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
    assert "(3 x " in lines["disk for checkpoints"]
    assert len(list((pretrained.folder / "checkpoints").iterdir())) == 3
    assert lines["dry_run=true: nothing was started"]


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


def test_the_published_run_of_swin_b_by_hand():
    words = ["backbone=swin_base_w14", "trainer=ddp", "trainer.devices=16", "trainer.num_nodes=4"]
    made = plan.make(compose(*words, "datamodule.batch_size=8", "callbacks=checkpoint"))
    assert (made.processes, made.global_batch, made.lr) == (64, 512, 0.001)
    assert (made.steps_per_epoch, made.steps, made.epochs) == (4672 // 512, 9 * 300, 300)
    head = 1024 * 2048 + 2048 + 2048**2 + 2048 + 2048 * 256 + 256 + 65536 * 256 + 65536  # gain and direction
    assert made.heads == 2 * head
    assert made.gradients == 4 * (made.backbone + made.heads)
    assert made.optimizer_state == 2 * made.gradients
    assert made.checkpoints == 31


def test_a_training_that_starts_late_is_shorter():
    words = ["init_from=L_V.pth", "start_epoch=200", "callbacks=checkpoint", "datamodule.batch_size=64"]
    whole, late = plan.make(compose(*words[2:])), plan.make(compose(*words))  # no weight is read
    assert (late.steps, late.epochs) == (whole.steps_per_epoch * 100, 100)
    assert (whole.checkpoints, late.checkpoints) == (31, 11)
    with pytest.raises(ValueError, match=r"start_epoch=200 leaves out the first epochs, .* give init_from="):
        plan.make(compose("start_epoch=200"))


def test_parameters_under_two_names_are_counted_once():
    made = plan.make(compose("backbone=vil_tiny", "loss=view", "augment=multi_crop"))
    assert made.backbone == 27_569_352
    assert made.weights == 4 * (2 * (made.backbone + made.heads) + 65536)  # student, teacher, one centre


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


def test_what_the_training_would_refuse_the_plan_refuses():
    with pytest.raises(ValueError, match="one step needs 5120 images .* and there are 4672"):
        plan.make(compose("trainer=ddp", "trainer.devices=80"))
    with pytest.raises(ValueError, match="loss.region_start_epoch=300 lies at or after the end of training"):
        plan.make(compose("loss.region_start_epoch=300"))
