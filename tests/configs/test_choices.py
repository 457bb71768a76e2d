"""What is chosen for images of one's own: a table of cases, and the rules of docs/experiments.md for each of them."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest

from esvit_pl.configs.choices import GIB, Machine, choose

CPU, GPU = Machine("cpu", 16 * GIB), Machine("cuda", 80 * GIB)


def chosen(images: int, side: float, machine: Machine = CPU, **given: Any) -> dict[str, Any]:
    dotted = {name.replace("__", "."): value for name, value in given.items()}
    choices = choose(images, side, machine, dotted)
    return {name: value for choice in choices for name, value in choice.settings.items()}


@pytest.mark.parametrize(
    ("images", "side", "machine", "backbone", "crops", "batch", "epochs", "prototypes"),
    [
        (50, 32, CPU, "swin_micro_32px", (32, 16), 8, 200, 64),
        (50, 375, CPU, "swin_micro_w7", (112, 48), 8, 200, 64),
        (2_000, 375, CPU, "swin_micro_w7", (112, 48), 64, 125, 128),
        (5_000, 375, CPU, "swin_micro_w7", (112, 48), 64, 50, 256),
        (60_000, 375, CPU, "swin_micro_w7", (112, 48), 64, 4, 4096),
        (60_000, 32, CPU, "swin_micro_32px", (32, 16), 64, 4, 4096),
        (1_000_000, 375, CPU, "swin_micro_w7", (112, 48), 64, 1, 4096),
        (1, 8, CPU, "swin_micro_32px", (32, 16), 1, 200, 64),
        (50, 375, GPU, "swin_micro_w7", (224, 96), 8, 800, 64),
        (10_000, 375, GPU, "swin_tiny_w7", (224, 96), 64, 800, 512),
        (100_000, 375, GPU, "swin_tiny_w7", (224, 96), 128, 280, 4096),
        (1_000_000, 375, GPU, "swin_tiny_w7", (224, 96), 256, 100, 65536),
        (10_000, 150, GPU, "swin_tiny_w7", (112, 48), 64, 800, 512),
        (60_000, 64, GPU, "swin_micro_32px", (64, 32), 128, 360, 4096),
    ],
)
def test_what_is_chosen(images, side, machine, backbone, crops, batch, epochs, prototypes):
    settings = chosen(images, side, machine)
    assert settings["backbone"] == backbone
    assert (settings["augment.global_size"], settings["augment.local_size"]) == crops
    assert settings["datamodule.batch_size"] * settings["trainer.accumulate_grad_batches"] == batch
    assert settings["trainer.max_epochs"] == epochs
    assert settings["loss.num_prototypes"] == prototypes
    assert settings["trainer"] == ("gpu" if machine is GPU else "cpu")


@pytest.mark.parametrize(
    ("images", "side", "machine"),
    list(product([1, 2, 3, 7, 50, 999, 5_000, 60_000, 2_000_000], [8, 32, 100, 250, 4000], [CPU, GPU])),
)
def test_every_choice_can_be_trained_and_follows_the_rules(images, side, machine):
    settings = chosen(images, side, machine)
    batch = settings["datamodule.batch_size"] * settings["trainer.accumulate_grad_batches"]
    assert 1 <= batch <= images
    epochs, per_epoch = settings["trainer.max_epochs"], images // batch
    steps = epochs * per_epoch
    assert settings["optimizer.warmup_epochs"] <= epochs / 10 * 1.001
    assert settings["optimizer.warmup_epochs"] * per_epoch == pytest.approx(
        max(steps / 30, min(1000, steps / 10)), rel=0.01
    )
    assert settings["module.freeze_prototypes_epochs"] == pytest.approx(
        settings["optimizer.warmup_epochs"] / 10, rel=0.01
    )
    assert settings["loss.teacher_temp_warmup_epochs"] <= epochs
    assert 0.5 <= settings["module.momentum"] <= settings["module.momentum_end"] <= 1
    horizon = 1 / (1 - settings["module.momentum"])
    assert horizon <= max(0.031 * steps, 2)
    assert settings["augment.local_size"] < settings["augment.global_size"] <= max(1.1 * side, 32)
    assert settings["augment.eval_crop"] <= settings["augment.eval_resize"]
    assert math.log2(settings["loss.num_prototypes"]).is_integer()


@pytest.mark.parametrize(("gib", "micro", "accumulate"), [(80, 64, 1), (24, 32, 2), (12, 16, 4), (6, 8, 8), (1, 1, 64)])
def test_a_smaller_gpu_takes_the_same_batch_in_parts(gib, micro, accumulate):
    settings = chosen(10_000, 375, Machine("cuda", gib * GIB))
    assert (settings["datamodule.batch_size"], settings["trainer.accumulate_grad_batches"]) == (micro, accumulate)


def test_processes_share_the_batch():
    settings = chosen(10_000, 375, Machine("cuda", 80 * GIB, processes=4))
    assert (settings["datamodule.batch_size"], settings["trainer.accumulate_grad_batches"]) == (16, 1)
    assert settings["module.momentum"] == chosen(10_000, 375, GPU)["module.momentum"]


def test_what_depends_on_a_given_setting_follows_it():
    shorter = chosen(5_000, 375, trainer__max_epochs=10, datamodule__batch_size=32)
    steps = 10 * (5_000 // 32)
    assert shorter["optimizer.warmup_epochs"] == pytest.approx(1)
    assert 1 / (1 - shorter["module.momentum"]) == pytest.approx(0.03 * steps, rel=0.01)
    larger = chosen(5_000, 375, augment__global_size=224)
    assert (larger["augment.local_size"], larger["augment.eval_crop"]) == (96, 224)
    small = chosen(5_000, 375, GPU, backbone="swin_small_w7")
    assert "loss.hidden_dim" not in small  # the published heads


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="for 1 image or more, got 0"):
        choose(0, 375, CPU)


def test_an_old_gpu_computes_in_16_mixed():
    assert chosen(10_000, 375, Machine("cuda", 16 * GIB, bfloat16=False))["trainer.precision"] == "16-mixed"
