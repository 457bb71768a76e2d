"""Which settings enter a training, and which differences between two trainings are told."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from esvit_pl.checkpoints.resuming import Batches, batch_differences, flat, image_differences, setting_differences
from esvit_pl.configs.assemble import plain
from esvit_pl.configs.compose import compose
from esvit_pl.configs.instantiation import defaults

SPECS: list[dict[str, Any]] = [{}, {}]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return plain(compose("pretrain", "dataset=folder", "dataset.root=photos", "callbacks=[default,linear]"))


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    if value is KeyError:
        del node[name]
    else:
        node[name] = value
    return config


def names(was: dict[str, Any], now: dict[str, Any], **defaults: Any) -> list[str]:
    return [difference.name for difference in setting_differences(was, now, SPECS, defaults)]


# Every setting of the shipped config that leaves the trained weights alone. All others must be told.
HARMLESS = {
    *("dry_run", "out", "overwrite", "ckpt_path", "init_from", "start_epoch", "tags", "optimized_metric", "chosen"),
    *("resume", "init.network", "init.heads", "init.resize_positions", "evaluation", "logger", "paths", "callbacks"),
    *(f"dataset.{name}" for name in ("_target_", "root", "labels", "layout", "index", "val_fraction", "max_pixels")),
    *(f"augment.{name}" for name in ("eval_resize", "eval_crop", "eval_interpolation", "eval_squash")),
    *(f"augment.{name}" for name in ("supervised_size", "supervised_scale")),
    *(f"datamodule.{name}" for name in ("num_workers", "persistent_workers", "pin_memory", "timeout", "color_on")),
    *("datamodule.eval_batch_size", "datamodule.train_subset", "datamodule.rand_augment"),
    *("module.compile", "module.grad_checkpointing", "optimizer.fused", "backbone.init"),
    *(f"trainer.{name}" for name in ("accelerator", "strategy", "max_time", "profiler", "benchmark", "deterministic")),
    *(f"trainer.{name}" for name in ("num_sanity_val_steps", "check_val_every_n_epoch", "log_every_n_steps")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary", "limit_val_batches")),
    "trainer.detect_anomaly",
}
# Compared by what they come to: `batch_differences`.
TOGETHER = {"datamodule.batch_size", "trainer.devices", "trainer.num_nodes", "trainer.accumulate_grad_batches"}
TOGETHER |= {"trainer.limit_train_batches"}


def test_every_other_setting_matters(config):
    keys = [(key, value) for key, value in flat(config) if not key.startswith("callbacks.") or "_target_" not in key]
    for key, value in keys:
        other = changed(config, key, "another" if value != "another" else "one")
        free = key in TOGETHER or any(key == name or key.startswith(f"{name}.") for name in HARMLESS)
        assert names(config, other) == ([] if free else [key]), key


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("esvit_pl.callbacks.OnlineKNN", False),
        ("pytorch_lightning.callbacks.LearningRateMonitor", False),
        ("pytorch_lightning.callbacks.StochasticWeightAveraging", True),
        ("pytorch_lightning.callbacks.ModelCheckpointing", True),
        ("theirs.callbacks.Unfreeze", True),
    ],
)
def test_callbacks_that_look_on_come_and_go(config, target, told):
    other = changed(config, "callbacks.mine", {"_target_": target, "swa_lrs": 0.1})
    expected = ["callbacks.mine._target_", "callbacks.mine.swa_lrs"] if told else []
    assert names(config, other) == names(other, config) == expected


def test_a_setting_that_an_older_config_does_not_name_had_its_default(config):
    older = changed(config, "optimizer.lr_schedule", KeyError)
    now = changed(config, "optimizer.lr_schedule", "linear")
    assert defaults(config)["optimizer.lr_schedule"] == config["optimizer"]["lr_schedule"] == "cosine"
    assert setting_differences(older, config, SPECS, defaults(config)) == []
    (told,) = setting_differences(older, now, SPECS, defaults(config))
    assert str(told) == "optimizer.lr_schedule: cosine in the checkpoint, linear now"
    (told,) = setting_differences(config, changed(config, "optimizer.nesterov", True), SPECS, defaults(config))
    assert str(told) == "optimizer.nesterov: not set in the checkpoint, true now"


def test_of_parts_that_an_older_config_does_not_describe_the_specs_are_compared(config):
    older = changed(config, "loss.student_temp", KeyError)
    specs = [{"loss": {"student_temp": 0.1}}, {"loss": {"student_temp": 0.2}}]
    assert [each.name for each in setting_differences(older, config, specs, {})] == ["loss.student_temp"]
    assert setting_differences(older, config, [specs[0], specs[0]], {}) == []


def test_images_given_as_an_object_are_compared_by_themselves(config):
    assert names(config, changed(config, "dataset", KeyError)) == []


def test_a_class_that_has_moved_is_the_same(config):
    assert names(config, changed(config, "datamodule._target_", "esvit_pl.datamodule.ImageDataModule")) == []


@pytest.mark.parametrize(
    ("entry", "allowed"), [("optimizer", True), ("optimizer.lr", True), ("optim", False), ("optimizer.lr_end", False)]
)
def test_a_name_or_its_group_allows(config, entry, allowed):
    (told,) = setting_differences(config, changed(config, "optimizer.lr", 1.0), SPECS, {})
    assert told.is_allowed([entry]) is allowed


def test_another_optimizer_is_never_allowed(config):
    (told,) = setting_differences(config, changed(config, "optimizer.name", "sgd"), SPECS, {})
    assert not told.is_allowed(["optimizer.name", "optimizer"])
    assert "cannot be allowed" in str(told)


def batches(**settings: Any) -> Batches:
    return Batches(**{"images": 100, "batch_size": 8, "ranks": 2, "accumulate": 1, "limit": None, **settings})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, None),
        ({"ranks": 1, "accumulate": 2}, None),
        ({"ranks": 1, "batch_size": 16}, None),
        ({"ranks": 4, "batch_size": 4}, None),
        ({"ranks": 1}, "images in a step (trainer.devices): 16 (8 x 2 processes x 1 accumulated) in the checkpoint, 8"),
        ({"limit": 3}, "steps in an epoch (trainer.limit_train_batches): 6 in the checkpoint, 3 now"),
        ({"limit": 0.5}, "steps in an epoch (trainer.limit_train_batches): 6 in the checkpoint, 3 now"),
        ({"limit": 6}, None),
        ({"limit": 12, "ranks": 1, "accumulate": 2}, None),
        ({"limit": 6, "ranks": 1, "accumulate": 2}, "steps in an epoch (trainer.limit_train_batches): 6"),
    ],
)
def test_batches_are_compared_by_images_in_a_step_and_steps_in_an_epoch(settings, told):
    was = {"trainer": {"devices": 2}}
    found = batch_differences(batches(), batches(**settings), was, {"trainer": {"devices": 1}})
    assert [str(difference).startswith(told) for difference in found] == ([True] if told else [])


def test_images_are_compared_by_number_and_names():
    was = {"images": 36, "names": "a"}
    assert image_differences(was, was) == []
    assert str(image_differences(was, {"images": 40, "names": "b"})[0]).endswith("36 in the checkpoint, 40 now")
    assert "names of the training images" in str(image_differences(was, {"images": 36, "names": "b"})[0])
