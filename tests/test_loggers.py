from __future__ import annotations

import csv
import math

import pytest
import toys

from esvit_pl.loggers import MetricsCSV, read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]


def test_only_ever_appends_also_on_resuming_and_with_new_names(tmp_path) -> None:
    logger = MetricsCSV(tmp_path / "run")
    logger.log_metrics({"train/view_loss": 1.5, "epoch": 0}, step=0)
    first = logger.path.read_bytes()
    assert first == b"step,epoch,name,value\n0,0,train/view_loss,1.5\n"
    resumed = MetricsCSV(tmp_path / "run")
    resumed.log_metrics({"knn/top1": 0.25, "epoch": 0}, step=1)
    assert resumed.path.read_bytes() == first + b"1,0,knn/top1,0.25\n"


def test_a_row_that_a_kill_cut_short_spoils_no_other(tmp_path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    with logger.path.open("a") as file:
        file.write("1,0,train/vi")
    logger.log_metrics({"a": 2.0}, step=2)
    assert read_metrics(logger.path) == [{"step": 0, "a": 1.0}, {"step": 2, "a": 2.0}]


def test_read_metrics_is_one_row_a_step_and_the_later_value_counts(tmp_path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"loss": 3.0, "epoch": 1}, step=5)
    logger.log_metrics({"knn/top1": 0.5, "epoch": 1}, step=5)
    logger.log_metrics({"loss": 9.0, "epoch": 0}, step=2)
    logger.log_metrics({"loss": 2.0, "epoch": 1}, step=5)
    assert read_metrics(logger.path) == [
        {"step": 2, "epoch": 0, "loss": 9.0},
        {"step": 5, "epoch": 1, "loss": 2.0, "knn/top1": 0.5},
    ]


def test_values_survive_to_the_last_digit(tmp_path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"x": 0.1 + 0.2, "y": float("nan"), 'odd, "name"': 1e-300}, step=1)
    (row,) = read_metrics(logger.path)
    assert row["x"] == 0.1 + 0.2
    assert math.isnan(row["y"])
    assert row['odd, "name"'] == 1e-300


def test_a_training_fills_it(tmp_path) -> None:
    logger = MetricsCSV(tmp_path / "run")
    trainer = toys.trainer(tmp_path, logger=logger, log_every_n_steps=1)
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    with logger.path.open() as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert {"train/view_loss", "train/region_loss", "train/lr", "train/teacher_momentum"} <= names
    rows = read_metrics(logger.path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1]
    assert trainer.log_dir == str(tmp_path / "run")
    logger.log_hyperparams({"anything": object()})
