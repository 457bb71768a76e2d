from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import esvit_pl.conf
import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from esvit_pl.configs.command_line import version_base
from esvit_pl.configs.sweep import refusal, summary
from esvit_pl.runs.reading import Run

TINY = ["trainer.max_epochs=1", "optimizer.warmup_epochs=0", "callbacks=[knn]"]


def rows(folder):
    """``sweep.csv``, by the name of the run."""
    with (folder / "sweep.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_a_sweep_ends_with_a_table_a_file_and_a_picture(commands, pictures):
    words = ["-m", *TINY, "loss=view,view_region", "seed=1,2"]
    outcome = commands.pretrain(pictures, *words)
    assert outcome.code == 0, outcome.err
    table = rows(outcome.folder)
    assert {name: (row["loss"], row["seed"]) for name, row in table.items()} == {
        "0": ("view", "1"),
        "1": ("view", "2"),
        "2": ("view_region", "1"),
        "3": ("view_region", "2"),
    }
    for name, row in table.items():
        results = json.loads((outcome.folder / name / "results.json").read_text())
        assert float(row["knn/top1"]) == results["metrics"]["knn/top1"]
        assert (row["status"], row["epochs"], row["steps"]) == ("finished", "1", "4")
    order = [float(row["knn/top1"]) for row in table.values()]
    assert order == sorted(order, reverse=True)
    with Image.open(outcome.folder / "sweep.png") as picture:
        assert picture.width > 500
    again = commands.run("table", str(outcome.folder))
    assert f"\n{again.out}\n{outcome.folder}/\n  sweep.csv\n  sweep.png\n" in outcome.out
    assert "mean ± standard deviation over the seeds" in again.out


def test_a_sweep_is_sorted_by_the_metric_that_it_is_to_improve(commands, pictures):
    words = ["-m", *TINY, "callbacks=none", "loss=view", "seed=1,2,3", "optimized_metric=train/view_loss"]
    outcome = commands.pretrain(pictures, *words)
    assert outcome.code == 0, outcome.err
    losses = [float(row["train/view_loss"]) for row in rows(outcome.folder).values()]
    assert len(losses) == 3
    assert losses == sorted(losses)
    assert (outcome.folder / "sweep.png").is_file()
    assert commands.run("table", str(outcome.folder)).out in outcome.out


def test_a_failed_job_loses_no_other(commands, pictures):
    outcome = commands.pretrain(pictures, "-m", *TINY, "loss=view", "optimizer.lr=1e30,-1,0.02")
    assert outcome.code == 1
    table = rows(outcome.folder)
    assert {name: row["status"] for name, row in table.items()} == {"2": "finished", "0": "failed", "1": "failed"}
    assert "0: NonFiniteLoss: the loss is not finite at " in outcome.out
    assert "1: optimizer: optimizer needs lr of 0 or more, got -1" in outcome.out


def test_values_that_are_no_numbers_are_listed_and_not_drawn(tmp_path):
    runs = [Run(tmp_path / "0", {"seed": "1"}, "finished", results={"knn/top1": float("nan")}), Run(tmp_path / "1")]
    assert summary(tmp_path, runs).endswith(f"{tmp_path}/\n  sweep.csv")
    assert rows(tmp_path)["0"]["knn/top1"] == "nan"
    assert not (tmp_path / "sweep.png").exists()


# -- jobs of several processes


def test_a_sweep_of_several_processes_a_job_is_refused_before_any_job(commands, pictures):
    outcome = commands.pretrain(pictures, "-m", "trainer=ddp_cpu", "seed=1,2")
    assert outcome.code == 1
    assert "a job of a sweep cannot train with 2 processes" in outcome.err
    assert "hydra/launcher=submitit_slurm hydra.launcher.tasks_per_node=N hydra.launcher.gpus_per_node=N" in outcome.err
    assert "Traceback" not in outcome.err
    assert not outcome.folder.exists()


def test_one_of_several_processes_among_others_is_refused_alone(commands, pictures):
    outcome = commands.pretrain(pictures, "-m", *TINY, "callbacks=none", "loss=view", "trainer.devices=2,1")
    assert outcome.code == 1
    assert {row["trainer.devices"]: row["status"] for row in rows(outcome.folder).values()} == {
        "2": "failed",
        "1": "finished",
    }
    assert "0: a job of a sweep cannot train with 2 processes. Lightning would start" in outcome.out


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({"devices": 1}, 1),
        ({"devices": 2}, 2),
        ({"devices": "3"}, 3),
        ({"devices": [0, 2]}, 2),
        ({"devices": "0,1,5"}, 3),
        ({"devices": 1, "num_nodes": 2}, 2),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
        ({"devices": "auto", "accelerator": "gpu"}, 4),
        ({"devices": -1, "accelerator": "auto"}, 4),
        ({"devices": 2, "strategy": "ddp_spawn"}, 1),
        ({"devices": 2, "strategy": {"_target_": "DDPStrategy", "start_method": "fork"}}, 1),
        ({"devices": 2, "strategy": {"_target_": "DDPStrategy"}}, 2),
    ],
)
def test_processes_that_lightning_would_start(monkeypatch, trainer, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cfg = OmegaConf.create({"trainer": {"accelerator": "gpu", "num_nodes": 1, "strategy": "auto", **trainer}})
    problem = refusal(cfg, {})
    assert (problem is None) if count == 1 else (f" {count} processes" in str(problem))


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, False),  # torchrun
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "pretrain"}, False),  # srun, submitit
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}, True),  # a shell inside an allocation
        ({"JSM_NAMESPACE_LOCAL_RANK": "0"}, False),  # jsrun
    ],
)
def test_processes_that_somebody_else_has_started_are_welcome(environment, refused):
    cfg = OmegaConf.create({"trainer": {"devices": 2, "num_nodes": 1, "accelerator": "cpu"}})
    assert (refusal(cfg, environment) is not None) == refused


def test_a_command_without_a_trainer_sweeps():
    assert refusal(OmegaConf.create({"seed": 0}), {}) is None


# -- the search


def test_the_search_moves_settings_that_exist_and_improves_what_is_measured():
    search = OmegaConf.load(Path(esvit_pl.conf.__file__).parent / "hparams_search" / "optuna.yaml")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", **version_base()):
        cfg = hydra.compose("pretrain")
    assert set(search.hydra.sweeper.params) == {"optimizer.lr", "module.momentum", "loss.teacher_temp"}
    assert all(isinstance(OmegaConf.select(cfg, key), float) for key in search.hydra.sweeper.params)
    assert (search.optimized_metric, search.hydra.sweeper.direction) == ("knn/top1", "maximize")


# -- jobs in other processes


def sweep(commands, pictures, folder, *words):
    """``esvit-pretrain -m`` in a process of its own, as from a shell."""
    words = commands.tiny_pretraining(pictures, *TINY, "loss=view", *words, f"hydra.sweep.dir={folder}")
    command = [sys.executable, "-m", "esvit_pl.commands.pretrain", "-m", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_jobs_side_by_side_with_joblib_and_one_fails(commands, pictures, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.lr=0.02,1e30,0.01"]
    done = sweep(commands, pictures, tmp_path / "sweep", *words)
    assert done.returncode == 1
    assert "NonFiniteLoss" in done.stderr
    table = rows(tmp_path / "sweep")
    assert {name: row["status"] for name, row in table.items()} == {"0": "finished", "1": "failed", "2": "finished"}
    assert "train/view_loss" in done.stdout
    assert (tmp_path / "sweep" / "sweep.png").is_file()


@pytest.mark.slow
def test_jobs_of_the_local_submitit_executor(commands, pictures, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = sweep(commands, pictures, tmp_path / "sweep", "hydra/launcher=submitit_local", "seed=1,2")
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "sweep")
    assert {row["seed"]: row["status"] for row in table.values()} == {"1": "finished", "2": "finished"}
    assert all(row["knn/top1"] for row in table.values())


@pytest.mark.slow
def test_optuna_gets_the_metric_to_improve(commands, pictures, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = [word for word in commands.tiny_pretraining(pictures, *TINY, "loss=view") if "optimizer.lr" not in word]
    words += ["hparams_search=optuna", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    command = [sys.executable, "-m", "esvit_pl.commands.pretrain", "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "sweep")
    assert len({row["optimizer.lr"] for row in table.values()}) == 2
    assert all(0.0003 <= float(row["optimizer.lr"]) <= 0.03 for row in table.values())
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert best.best_value == max(float(row["knn/top1"]) for row in table.values())
