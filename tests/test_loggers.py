from __future__ import annotations

import csv
import math
from types import SimpleNamespace
from typing import Any

import pytest
import toys
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger

from esvit_pl.loggers import MetricsCSV, log_figure, read_metrics

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


def figure() -> Figure:
    made = Figure(figsize=(1, 1))
    made.subplots().plot([1, 2])
    return made


def test_tensorboard_gets_figures(tmp_path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name=None, version="here")
    assert log_figure(logger, "attention", figure(), 7)
    logger.experiment.flush()
    events = accumulator.EventAccumulator(logger.log_dir).Reload()
    (image,) = events.Images("attention")
    assert image.step == 7
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_metrics_csv_writes_figures_beside_itself(tmp_path) -> None:
    assert log_figure(MetricsCSV(tmp_path / "run"), "health/attention", figure(), 41)
    path = tmp_path / "run" / "figures" / "health" / "attention" / "step_000041.png"
    assert path.read_bytes().startswith(b"\x89PNG")


class Recorder:
    """Methods of other loggers, as their documentation has them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []


class WandbStyle(Recorder):
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append((key, images, step))


class MlflowStyle(Recorder):
    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
        self.calls.append((run_id, figure, artifact_file))


class CometStyle(Recorder):
    def log_figure(
        self, figure_name: str | None = None, figure: Any = None, overwrite: bool = False, step: int | None = None
    ) -> None:
        self.calls.append((figure_name, figure, step))


class NeptuneStyle(Recorder):
    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(append=lambda value, *, step=None: self.calls.append((name, value, step)))


class NeptuneLogger:
    experiment = NeptuneStyle()


def test_other_loggers_get_figures_in_their_own_ways() -> None:
    drawn = figure()
    wandb, mlflow, comet = WandbStyle(), MlflowStyle(), CometStyle()
    assert log_figure(wandb, "x", drawn, 3)
    assert wandb.calls == [("x", [drawn], 3)]
    assert log_figure(SimpleNamespace(experiment=mlflow, run_id="r"), "x", drawn, 3)
    assert mlflow.calls == [("r", drawn, "x/step_000003.png")]
    assert log_figure(SimpleNamespace(experiment=comet), "x", drawn, 3)
    assert comet.calls == [("x", drawn, 3)]
    assert log_figure(NeptuneLogger(), "x", drawn, 3)
    assert NeptuneLogger.experiment.calls == [("x", drawn, 3)]
    assert not log_figure(SimpleNamespace(experiment=None), "x", drawn, 3)
    assert not log_figure(SimpleNamespace(), "x", drawn, 3)
