"""What a run writes of itself, and that nobody finds half of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
from omegaconf import OmegaConf

from esvit_pl.runs import folder
from esvit_pl.runs.folder import RunFolder, environment, git_state, remove_empty


def results(run: RunFolder) -> dict:
    return json.loads((run.path / "results.json").read_text())


def test_a_reader_never_sees_half_of_the_results(tmp_path):
    run = RunFolder(tmp_path)
    run.update(knn={"pretrained": 0.5})
    with (tmp_path / "results.json").open() as reader:
        run.update(metrics={"train/view_loss": 1.0})
        assert json.load(reader) == {"knn": {"pretrained": 0.5}}


def test_results_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    run.update(knn={"pretrained": 0.5})

    def killed(self, text, **options):
        with self.open("w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            run.update(metrics={"train/view_loss": 1.0})
    assert results(run) == {"knn": {"pretrained": 0.5}}
    run.update(linear={"pretrained": 0.25})
    assert set(results(run)) == {"knn", "metrics", "linear"}
    assert [path.name for path in run.path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), {"status": "stopped"}),
        (SystemExit(143), {"status": "stopped"}),
        (RuntimeError("shape"), {"status": "failed", "error": "RuntimeError: shape"}),
        (MemoryError(), {"status": "failed", "error": "MemoryError: "}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_status_of_a_run_that_ends_early(tmp_path, error, status):
    run = RunFolder(tmp_path)

    def work():
        with run.status():
            assert results(run) == {"status": "running"}
            run.update(metrics={})
            raise error

    with pytest.raises(type(error)):
        work()
    assert results(run) == {"metrics": {}, **status}


@pytest.mark.fault(
    "disk: full when a run ends",
    "`results.json` says failed or stopped all the same: the word takes the place of the old one",
)
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "stopped"), (OSError(errno.ENOSPC, ""), "failed")])
def test_a_full_disk_does_not_leave_a_run_that_seems_to_go_on(tmp_path, monkeypatch, error, status):
    run = RunFolder(tmp_path)

    def fills_the_disk():
        with run.status():
            run.update(metrics={"knn/top1": 0.5})
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            monkeypatch.setattr(Path, "write_text", Mock(side_effect=full))
            raise error

    with pytest.raises(type(error)):
        fills_the_disk()
    assert results(run) == {"status": status, "metrics": {"knn/top1": 0.5}}


def test_status_of_a_run_that_finishes(tmp_path):
    run = RunFolder(tmp_path)
    with run.status():
        pass
    assert results(run) == {"status": "finished"}


def test_other_processes_write_nothing(tmp_path):
    run = RunFolder(tmp_path / "run", writes=False)
    run.describe(OmegaConf.create({"seed": 0}))
    with run.status():
        run.update(knn={"pretrained": 0.5})
    assert not (tmp_path / "run").exists()
    assert run.results == {"status": "finished", "knn": {"pretrained": 0.5}}


def test_the_config_is_written_resolved(tmp_path):
    RunFolder(tmp_path).describe(OmegaConf.create({"a": 2, "b": {"c": "${a}", "d": "${b.c}"}}))
    assert (tmp_path / "config.yaml").read_text() == "a: 2\nb:\n  c: 2\n  d: 2\n"
    assert json.loads((tmp_path / "environment.json").read_text())["packages"]["timm"]


def test_git_state(tmp_path):
    assert git_state(tmp_path) is None
    name = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for words in (["init", "-q"], [*name, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (tmp_path / "new.py").write_text("")
    assert git_state(tmp_path) == {**state, "changed": True}


def test_a_machine_without_git_is_described_too(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


def test_a_package_that_is_not_there_is_null(monkeypatch):
    monkeypatch.setattr(folder, "PACKAGES", ("torch", "no-such-package"))
    versions = environment()["packages"]
    assert versions["no-such-package"] is None
    assert versions["torch"][0].isdigit()


def test_the_command_is_kept_as_it_was_typed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/esvit-knn", "ckpt_path=a b.ckpt"])
    assert environment()["command"] == ["esvit-knn", "ckpt_path=a b.ckpt"]


def test_empty_folders_go_but_never_the_one_we_stand_in(tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "logs" / "runs" / "one").mkdir(parents=True)
    monkeypatch.chdir(here)
    remove_empty(Path("logs/runs/one"))
    assert list(tmp_path.iterdir()) == [here]
    assert list(here.iterdir()) == []
    remove_empty(Path("."))
    assert here.is_dir()
    (here / "logs" / "runs").mkdir(parents=True)
    (here / "logs" / "kept.txt").touch()
    remove_empty(Path("logs/runs"))
    assert [path.name for path in (here / "logs").iterdir()] == ["kept.txt"]
    with pytest.raises(OSError, match="not empty"):
        remove_empty(Path("logs"))
