"""Which folder a command takes, before Hydra writes anything. Composed as Hydra composes; nothing is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from esvit_pl.configs import run_folder
from esvit_pl.configs.processes import is_first_process
from esvit_pl.runs.lock import NAME


@pytest.fixture(autouse=True)
def _afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESVIT_LOG_DIR", "logs")
    yield
    run_folder.release()


def started(*words: str, command: str = "pretrain", sweep: bool = False) -> Any:
    """The config after the callback has seen it, as Hydra hands it to the job or the sweeper."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(command, list(words), RunMode.MULTIRUN if sweep else RunMode.RUN)
    with open_dict(config):
        config.hydra.job.name = command
    callback = run_folder.RunFolders()
    (callback.on_multirun_start if sweep else callback.on_run_start)(config)
    return config


@pytest.mark.parametrize("command", ["pretrain", "knn", "linear"])
@pytest.mark.parametrize("word", ["out=mine", "hydra.run.dir=mine", "paths.output_dir=mine"])
def test_a_plain_name_is_the_runs_folder(word, command):
    assert started(word, command=command).hydra.run.dir == "mine"
    assert (Path("mine") / NAME).is_file()
    run_folder.release()
    assert not Path("mine").exists()


def test_without_a_name_it_is_a_new_one_even_in_the_same_microsecond():
    assert started().hydra.run.dir.startswith("logs/pretrain/runs/20")
    claims = [run_folder.claim_new(Path("logs/now")) for _ in range(3)]
    assert [claim.folder.name for claim in claims] == ["now", "now_2", "now_3"]
    for claim in claims:
        claim.release()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["out=one", "hydra.run.dir=two"],
            "out=one and hydra.run.dir=two name two folders for one run; give one",
        ),
        (["out=''"], "out= is empty; give a folder, or leave it out"),
        (["out=file"], "file is a file; a run needs a folder"),
        (["out=taken"], "taken already holds a run"),
        (["out=photos", "dataset=folder", "dataset.root=photos"], "out=photos holds images of dataset.root=photos"),
        (["out=photos/cat/", "dataset=folder", "dataset.root=./photos"], "such as out=photos/cat/run"),
    ],
)
def test_a_wrong_folder_ends_the_command_with_a_sentence(words, said, capsys):
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken/metrics.csv").touch()
    Path("photos/cat").mkdir(parents=True)
    Path("photos/cat/1.jpg").touch()
    with pytest.raises(SystemExit, match="1"):
        started(*words)
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["file", "photos", "taken"]
    assert sorted(path.name for path in Path("photos").rglob("*")) == ["1.jpg", "cat"]


def test_a_dry_run_touches_no_folder():
    Path("taken").mkdir()
    Path("taken/metrics.csv").touch()
    assert started("out=taken", "dry_run=true").hydra.run.dir != "taken"
    assert [path.name for path in Path("taken").iterdir()] == ["metrics.csv"]


def test_a_sweep_takes_the_folder_and_its_jobs_lie_inside():
    config = started("out=mine", "seed=1,2", sweep=True)
    assert config.hydra.sweep.dir == "mine"
    assert "hydra.sweep.dir=mine" in list(config.hydra.overrides.hydra)


def test_a_sweep_over_folders_is_refused(capsys):
    with pytest.raises(SystemExit, match="1"):
        started("out=one,two", sweep=True)
    assert "out=one,two: a sweep has one folder, and each of its jobs one inside" in capsys.readouterr().err


def test_a_sweeps_folder_is_no_place_for_another(capsys):
    Path("mine/0").mkdir(parents=True)
    Path("mine/0/results.json").write_text(json.dumps({"status": "finished"}))
    for sweep in (True, False):
        with pytest.raises(SystemExit, match="1"):
            started("out=mine", sweep=sweep)
        assert "mine already holds a run" in capsys.readouterr().err


def test_other_processes_of_a_training_claim_nothing(monkeypatch):
    Path("taken").mkdir()
    Path("taken/metrics.csv").touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    config = started("out=taken")
    assert config.hydra.run.dir == "taken"
    assert OmegaConf.select(config, "hydra.output_subdir") is None  # it writes no notes
    assert [path.name for path in Path("taken").iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("command", ["table", "convert", "bench"])
def test_commands_that_make_no_run_are_left_alone(command):
    config = started("out=file", command=command)
    assert config.hydra.run.dir == "."
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_the_first_process(environment, first):
    assert is_first_process(environment) is first
