from __future__ import annotations

import json
import os
import time

import pytest
from omegaconf import OmegaConf

from esvit_pl.runs.lock import identity
from esvit_pl.runs.reading import Run, find_runs, read_run


def write(folder, overrides=(), rows=(), goal="null", **results):
    """A run folder as a run leaves it behind."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    (folder / ".hydra" / "config.yaml").write_text(f"seed: 0\noptimized_metric: {goal}\nresume:\n  mode: by_name\n")
    if rows:
        (folder / "metrics.csv").write_text("\n".join(["step,epoch,name,value", *rows, ""]))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_run_is_its_settings_how_far_it_came_and_its_last_results(tmp_path):
    rows = ["3,0,train/view_loss,5.5", "3,0,knn/top1,0.3", "7,1,train/view_loss,4.5"]
    write(
        tmp_path / "run",
        ["loss=view", "+new.key=[1,2]", "++seed=3", "~callbacks.knn", "tags=[a=b]"],
        rows,
        goal="linear/top1",
        status="finished",
        metrics={"knn/top1": 0.4, "knn/top5": 0.75},
        knn={"chance": 0.05, "untrained": 0.25, "pretrained": 0.5},
        linear={"pretrained": 0.625},
    )
    assert find_runs(tmp_path) == [
        Run(
            tmp_path / "run",
            overrides={"loss": "view", "new.key": "[1,2]", "seed": "3", "~callbacks.knn": "", "tags": "[a=b]"},
            status="finished",
            epochs=2,
            steps=8,
            results={
                "train/view_loss": 4.5,
                "knn/top1": 0.5,
                "knn/top5": 0.75,
                "linear/top1": 0.625,
                "untrained/knn/top1": 0.25,
            },
            kind="training",
            goal="linear/top1",
        )
    ]
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("ckpt_path: RUN\nresume_from: null\n")
    assert read_run(tmp_path / "run").kind == "evaluation"


def test_settings_are_read_as_hydra_writes_them(tmp_path):
    words = ["seed=1", "~callbacks.knn", "a=b: c", "b='x y'", "c=" + "long " * 40 + "end", "d=it's # so", "+e=[1, 2]"]
    folder = write(tmp_path / "run")
    for some in (words, words[:2]):
        OmegaConf.save(OmegaConf.create(some), folder / ".hydra" / "overrides.yaml")
        expected = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in some)}
        assert read_run(folder).overrides == expected


def test_the_end_of_a_long_file_is_read_and_rows_cut_by_a_kill_are_passed_over(tmp_path):
    old = [f"{step},{step // 100},train/view_loss,{step}.5" for step in range(20_000)]
    run = read_run(write(tmp_path / "run", rows=[*old, "20000,,knn/top1,0.25", "20001,200,train/vi"]))
    assert (run.epochs, run.steps) == (200, 20_001)
    assert run.results == {"train/view_loss": 19_999.5, "knn/top1": 0.25}


def test_who_says_running_and_writes_nothing_is_silent(tmp_path):
    folder = write(tmp_path / "run", status="running", rows=["0,0,train/view_loss,1"])
    assert read_run(folder).status == "running"
    for path in (folder / "results.json", folder / "metrics.csv", *(folder / ".hydra").iterdir(), folder / ".hydra"):
        os.utime(path, (0, time.time() - 7200))
    assert read_run(folder).status == "silent"
    assert read_run(folder, silent_after=3 * 3600).status == "running"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    assert read_run(folder).status == "running"


def test_who_says_running_and_whose_process_is_gone_was_killed(tmp_path):
    folder = write(tmp_path / "run", status="running", rows=["0,0,train/view_loss,1"])
    (folder / "run.lock").write_text(json.dumps(identity()))
    assert read_run(folder).status == "running"
    (folder / "run.lock").write_text(json.dumps({**identity(), "process_started": "0"}))
    assert read_run(folder).status == "killed"


def test_what_is_missing_or_broken_stays_empty(tmp_path):
    folder = write(tmp_path / "run")
    assert read_run(folder) == Run(folder, kind="training")
    assert read_run(folder).status == "no results"
    (folder / "results.json").write_text('{"status": "fin')
    assert read_run(folder) == Run(folder, kind="training")
    (folder / "results.json").write_text('{"status": "failed", "error": "ValueError:\\n  too  much", "knn": null}')
    assert (read_run(folder).status, read_run(folder).error) == ("failed", "ValueError: too much")


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers_and_once(tmp_path):
    for name in ("sweep/10", "sweep/2", "sweep/2/inner", "sweep/.hidden/0", "alone"):
        write(tmp_path / name)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "results.json").write_text("{}")  # of a run that was not started by a command
    names = [run.folder.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path, tmp_path / "sweep")]
    assert names == ["alone", "bare", "sweep/2", "sweep/10"]
    assert [run.folder for run in find_runs(tmp_path / "alone")] == [tmp_path / "alone"]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder '.*lgos'"):
        find_runs(tmp_path / "lgos")
