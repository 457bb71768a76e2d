"""Which folders hold a run, and what overwriting removes."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path

import pytest

from esvit_pl.runs.claim import Claim, FolderTaken, claimed, files_of_a_run, holds_run, resume_command, run_of

OURS = [
    "config.yaml",
    "config.2.yaml",
    "environment.json",
    "results.json",
    "metrics.csv",
    "metrics.1.csv",
    "learning_curve.png",
    "report.html",
    "figures/crops.png",
    "figures/attention/step_000041.png",
    "checkpoints/last.ckpt",
    "checkpoints/previous.ckpt",
    "checkpoints/.last.ckpt.tmp",
    ".results.json.tmp",
    "checkpoints/epoch_009.ckpt",
    "checkpoints/epoch_009-v1.ckpt",
    "checkpoints.1/last.ckpt",
    ".hydra/overrides.yaml",
    ".hydra.1/config.yaml",
    "tensorboard/events.out.tfevents.1.host.2.0",
    "knn/results.json",
    "multirun.yaml",
    "sweep.csv",
    "0/results.json",
]
FOREIGN = [
    "notes.txt",
    "photo.png",
    "my_config.yaml",
    "table.csv",
    "figures/for_the_paper.png",
    "checkpoints/keep_me.ckpt",
    "checkpoints/notes.txt",
    "deeper/results.json",
    "deeper/checkpoints/last.ckpt",
    "1/photo.jpg",
]


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith("json") else "a: 1\n")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", OURS)
def test_a_folder_with_a_file_of_a_run_is_refused_untouched(tmp_path, name):
    folder = tmp_path / "mine"
    fill(folder, [name, "notes.txt"])
    before = contents(folder)
    with pytest.raises(
        FolderTaken, match=r"mine already holds a run.*; nothing in it was changed(?s:.*)overwrite=true"
    ):
        Claim(folder)
    assert contents(folder) == before
    assert claimed(folder) is None


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_no_run(tmp_path, name):
    fill(tmp_path, [name])
    assert not holds_run(tmp_path)
    Claim(tmp_path).release()
    assert list(contents(tmp_path)) == [name]


def test_overwriting_removes_a_runs_files_and_no_others(tmp_path):
    fill(tmp_path, [*OURS, *FOREIGN])
    claim = Claim(tmp_path, overwrite=True)
    assert len(contents(tmp_path)) == len(OURS) + len(FOREIGN) + 1  # the lock: nothing has gone yet
    removed = claim.clear()
    claim.release()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in removed) == sorted(OURS)
    assert sorted(contents(tmp_path)) == sorted(FOREIGN)
    assert not (tmp_path / ".hydra").exists()
    assert not holds_run(tmp_path)


def test_without_overwrite_nothing_is_removed(tmp_path):
    fill(tmp_path, OURS)
    claim = Claim(tmp_path, goes_on=True)
    assert claim.clear() == []
    claim.release()
    assert sorted(contents(tmp_path)) == sorted(OURS)


def test_a_run_that_failed_before_it_began_leaves_the_folder_free(tmp_path):
    fill(tmp_path, [".hydra/overrides.yaml"])
    (tmp_path / "results.json").write_text('{"status": "failed", "error": "optimizer needs lr of 0 or more, got -1"}')
    (tmp_path / "config.yaml").write_text("seed: 0")
    assert not holds_run(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,epoch,name,value\n")
    assert holds_run(tmp_path)


def test_a_folder_is_claimed_once(tmp_path):
    claim = Claim(tmp_path / "run")
    assert claimed(tmp_path / "run") is claim
    with pytest.raises(ValueError, match="is writing into"):
        Claim(tmp_path / "run")
    claim.release()
    assert claimed(tmp_path / "run") is None
    assert not (tmp_path / "run").exists()  # nothing was written


def test_a_file_and_a_folder_without_permission_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; a run needs a folder"):
        Claim(tmp_path / "file")

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(
        ValueError, match=r"cannot write into .*run \(Permission denied\); give another folder with out="
    ):
        Claim(tmp_path / "run")


def test_the_command_to_go_on_with_repeats_the_runs_words(tmp_path):
    assert resume_command(tmp_path) is None
    fill(tmp_path, ["checkpoints/epoch_009.ckpt", "checkpoints/last.ckpt"])
    (tmp_path / ".hydra").mkdir()
    words = ["experiment=embedded", "+trainer.limit_test_batches=1", "out=mine", "ckpt_path=x", "dataset.root='a b'"]
    (tmp_path / ".hydra" / "overrides.yaml").write_text("".join(f"- {json.dumps(word)}\n" for word in words))
    assert shlex.split(str(resume_command(tmp_path))) == [
        "esvit-pretrain",
        *(words[index] for index in (0, 1, 4)),
        f"ckpt_path={tmp_path}/checkpoints/last.ckpt",
    ]


def write_checkpoint(path: Path, content: bytes = b"esvit_pl loops") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return path


def test_the_run_of_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    fill(run, ["results.json"])
    kept = write_checkpoint(run / "checkpoints" / "last.ckpt")
    assert run_of(kept) == run_of(run) == run_of(run / "checkpoints") == run
    assert run_of(write_checkpoint(run / "deeper" / "checkpoints" / "last.ckpt")) == run
    assert run_of(write_checkpoint(tmp_path / "copied.ckpt")) is None
    assert run_of(write_checkpoint(run / "checkpoints.1" / "last.ckpt")) is None
    assert run_of(write_checkpoint(run / "released.pth", b"student teacher")) is None
    assert run_of(tmp_path / "nowhere.ckpt") is None
    assert run_of("resnet50") is None
    assert run_of(None) is None
    assert len(files_of_a_run(run)) == 3
