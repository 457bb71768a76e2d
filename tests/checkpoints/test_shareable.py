"""What an export tells of a run is a list; the rest stays home, whatever it is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from esvit_pl.checkpoints.resuming import flat
from esvit_pl.checkpoints.shareable import SETTINGS, is_shareable, shareable, shareable_results, shareable_spec
from esvit_pl.configs.assemble import plain
from esvit_pl.configs.compose import compose

CONFIG = {
    "loss": {"_target_": "esvit_pl.objectives.EsViTObjective", "view_weight": 0.5, "region_weight": 0.5},
    "optimizer": {"name": "adamw", "lr": 0.0005},
    "trainer": {"max_epochs": 30, "default_root_dir": "/home/somebody/logs"},
    "dataset": {"_target_": "esvit_pl.datasets.folder", "root": "photos", "labels": "auto", "val_fraction": 0.1},
    "augment": {"num_local": [4, 4], "local_scale": [[0.2, 0.4], [0.05, 0.2]]},
    "paths": {"log_dir": "logs"},
    "logger": {"wandb": {"entity": "somebody"}},
    "callbacks": {"checkpoint": {"dirpath": "C:\\runs", "every_n_epochs": 1}, "folders": ["~/x", "y"]},
    "tags": ["for somebody"],
    "seed": 0,
}
HOME = {
    *("dataset.root", "dataset.index", "trainer.max_time", "trainer.accelerator", "trainer.strategy"),
    *("trainer.num_sanity_val_steps", "trainer.check_val_every_n_epoch", "trainer.log_every_n_steps"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.limit_val_batches"),
    *("trainer.overfit_batches", "trainer.fast_dev_run", "trainer.deterministic", "trainer.benchmark"),
    *("trainer.profiler", "trainer.detect_anomaly", "trainer.gradient_clip_val", "trainer.use_distributed_sampler"),
    *("datamodule.eval_batch_size", "datamodule.num_workers", "datamodule.persistent_workers"),
    *("datamodule.pin_memory", "datamodule.timeout", "datamodule.train", "datamodule.color_on"),
    *("datamodule._target_", "datamodule.train_subset", "trainer._target_"),
}
"""Settings of the listed groups that no export tells."""


def test_only_what_is_listed_leaves():
    given = copy.deepcopy(CONFIG)
    shared = shareable(given)
    assert shared == {
        "loss": CONFIG["loss"],
        "optimizer": CONFIG["optimizer"],
        "trainer": {"max_epochs": 30},
        "augment": CONFIG["augment"],
        "dataset": {"_target_": "esvit_pl.datasets.folder", "labels": "auto", "val_fraction": 0.1},
        "seed": 0,
    }
    assert given == CONFIG  # the given one is as it was


def test_every_setting_of_the_shipped_groups_is_told_or_stays_home_on_purpose():
    config = plain(compose("pretrain", "dataset=folder", "dataset.root=photos"))
    config["dataset"] |= plain(compose("pretrain", "dataset=photographs"))["dataset"] | {"root": "photos"}
    losses = [path.stem for path in (Path(__file__).parents[2] / "conf" / "loss").glob("*.yaml")]
    leaves = {f"loss.{name}" for loss in losses for name in compose("pretrain", f"loss={loss}").loss}
    leaves |= {f"loss.{name}" for name in compose("pretrain", "loss=view_region", "view=byol").loss}
    leaves |= {key for group in SETTINGS for key, _ in flat({group: config[group]})}
    listed = {f"{group}.{name}" for group, names in SETTINGS.items() for name in names}
    assert leaves - listed == HOME
    assert listed <= leaves | {"trainer.limit_train_batches"}
    values = dict(flat(config))
    unseen = [key for key in listed & values.keys() if not is_shareable(values[key])]
    assert not unseen


@pytest.mark.parametrize(
    "value",
    [
        "/home/me",
        "~/x",
        "C:\\runs",
        "a/b",
        "../x",
        "two words",
        "${oc.env:X}",
        "hf_" + "a1B2" * 8,
        "https://a.example",
        "",
    ]
    + [["ok", "/x"], {"a/b": 1}, {"a": ["/x"]}, object()],
)
def test_a_listed_setting_with_a_value_that_is_no_plain_word_stays_home(value):
    assert shareable({"loss": {"teacher_temp_schedule": value, "view_weight": 1}}) == {"loss": {"view_weight": 1}}
    assert shareable_spec({"name": "mine", "weights": value}) == {"name": "mine"}


def test_results_are_numbers_of_known_rows():
    results = {"knn": {"pretrained": 0.5, "note": "x"}, "linear": "x", "metrics": {"a/b": 1.0, "c": "x", "<b>": 1.0}}
    results |= {"error": "in /home/me", "status": "finished"}
    assert shareable_results(results) == {"knn": {"pretrained": 0.5}, "metrics": {"a/b": 1.0}}
