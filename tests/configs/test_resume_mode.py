"""``resume=``: begin, go on, or neither, and never begin anew without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import esvit_pl

SHORT = ("trainer.max_epochs=2", "callbacks=[checkpoint]")


@pytest.fixture(scope="module")
def run(commands, pictures, tmp_path_factory) -> Path:
    """A finished run that was begun with ``resume=auto``."""
    folder = tmp_path_factory.mktemp("auto") / "run"
    outcome = commands.pretrain(pictures, *SHORT, f"out={folder}", "resume=auto")
    assert outcome.code == 0, outcome.err
    assert f"resume=auto: {folder} holds no checkpoint; a new training begins there" in outcome.out
    assert not (folder / "config.1.yaml").exists()
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """The run, stopped after its first epoch."""
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "checkpoints" / "previous.ckpt").replace(folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_it_goes_on_in_the_folder_and_ends_like_an_uninterrupted_run(commands, pictures, run, copy, mode):
    outcome = commands.pretrain(pictures, *SHORT, f"out={copy}", f"resume={mode}")
    assert outcome.code == 0, outcome.err
    assert f"resuming {copy} from epoch 1 (2nd of 2)" in outcome.out
    assert (copy / "config.1.yaml").exists()
    whole, again = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, copy))
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert json.loads((copy / "results.json").read_text())["status"] == "finished"


def test_as_a_function(pictures, copy, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="resume=must: .* holds no checkpoint; resume=auto would begin a new training"):
        esvit_pl.pretrain(str(pictures), out=tmp_path / "new", resume="must")
    with pytest.raises(ValueError, match="resume=auto goes on with the run in the folder that out= names; give out=F"):
        esvit_pl.pretrain(str(pictures), resume="auto")
    with pytest.raises(ValueError, match="other settings, and going on with these would not be the same training"):
        esvit_pl.pretrain(str(pictures), out=copy, resume="auto", epochs=7)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(
        ValueError, match=r"SLURM starts this job again \(SLURM_RESTART_COUNT=1\), and the training would"
    ):
        esvit_pl.pretrain(str(pictures))


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_and_nothing_of_it_is_lost(
    commands, pictures, run, copy
):
    shutil.rmtree(copy / "checkpoints")
    rows = (copy / "metrics.csv").read_text()
    outcome = commands.pretrain(pictures, *SHORT, f"out={copy}", "resume=auto")
    assert outcome.code == 0, outcome.err
    assert f"{copy} holds no checkpoint; a new training begins there" in outcome.out
    assert "rows of later steps are in metrics.1.csv now" in outcome.out
    assert (copy / "metrics.1.csv").read_text() == rows
    assert (copy / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_a_damaged_checkpoint_is_passed_over_and_without_a_whole_one_nothing_begins(commands, pictures, run, copy):
    last = copy / "checkpoints" / "last.ckpt"
    shutil.copy(last, copy / "checkpoints" / "previous.ckpt")
    last.write_bytes(last.read_bytes()[:-100])
    outcome = commands.pretrain(pictures, *SHORT, f"out={copy}", "resume=auto")
    assert outcome.code == 0, outcome.err
    assert f"passed over: {last} " in outcome.out
    for path in (copy / "checkpoints").iterdir():
        path.write_bytes(b"")
    outcome = commands.pretrain(pictures, *SHORT, f"out={copy}", "resume=auto")
    assert outcome.code == 1
    assert "holds no checkpoint that is whole" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out={new}", "resume=must"], "resume=must: {new} holds no checkpoint; resume=auto would begin a new"),
        (["resume=never", "ckpt_path={run}"], "resume=never begins a new training, and ckpt_path={run} goes on with"),
        (["resume=never", "out={run}"], "{run} already holds a run"),
        (["out={run}"], "{run} already holds a run"),
        (["resume=maybe"], "resume=maybe: there is no such option; resume= takes auto, by_name, must, never"),
        (["resume.mode=maybe"], "resume.mode=maybe must be one of by_name, auto, must and never"),
        (["-m", "seed=1,2", "out={new}", "resume=auto"], "resume=auto goes on with one run, and a sweep has many"),
    ],
)
def test_what_is_refused(commands, pictures, run, tmp_path, words, said):
    place = {"run": run, "new": tmp_path / "new"}
    before = sorted(run.rglob("*"))
    outcome = commands.pretrain(pictures, *SHORT, *(word.format(**place) for word in words))
    assert outcome.code == 1
    assert said.format(**place) in outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(run.rglob("*")) == before


def test_a_dry_run_reads_the_run_that_would_go_on(commands, pictures, copy):
    outcome = commands.pretrain(pictures, *SHORT, f"out={copy}", "resume=auto", "dry_run=true", "optimizer.lr=0.5")
    assert outcome.code == 1
    assert "optimizer.lr" in outcome.err
