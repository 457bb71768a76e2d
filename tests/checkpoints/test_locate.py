"""What a path to a checkpoint means, and what is said where it means nothing."""

from __future__ import annotations

import os

import pytest
import torch

from esvit_pl.checkpoints import last_checkpoint, read_checkpoint


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*paths: str, content: str = ""):
    """Files, each written a second after the one before."""
    for second, path in enumerate(paths):
        folder, _, name = path.rpartition("/")
        if folder:
            os.makedirs(folder, exist_ok=True)
        if name.endswith(".ckpt"):
            torch.save({}, path)
        elif name:
            with open(path, "w") as file:
                file.write(content)
            os.utime(path, (second, second))


@pytest.mark.parametrize(
    ("files", "meant"),
    [
        (["RUN/checkpoints/last.ckpt", "RUN/checkpoints/epoch_009.ckpt"], "RUN/checkpoints/last.ckpt"),
        (["RUN/checkpoints/last.ckpt", "RUN/checkpoints/last-v1.ckpt"], "RUN/checkpoints/last-v1.ckpt"),
        (["RUN/checkpoints/epoch_019.ckpt", "RUN/checkpoints/epoch_009.ckpt"], "RUN/checkpoints/epoch_009.ckpt"),
        (["RUN/a.ckpt", "RUN/last.ckpt"], "RUN/last.ckpt"),
        (["RUN/config.json", "RUN/last.ckpt"], "RUN/last.ckpt"),
    ],
    ids=["last.ckpt", "a second last.ckpt", "without last.ckpt the newest", "not in checkpoints", "with other files"],
)
def test_a_run_folder_means_its_last_checkpoint(here, files, meant):
    touch(*files)
    assert str(last_checkpoint("RUN")) == meant
    assert str(last_checkpoint(meant)) == meant
    if "checkpoints" in meant:
        assert str(last_checkpoint("RUN/checkpoints/")) == meant


def test_damaged_checkpoints_are_passed_over_and_named(here, capsys):
    touch("RUN/checkpoints/epoch_000.ckpt", "RUN/checkpoints/epoch_001.ckpt", "RUN/checkpoints/last.ckpt")
    cut = here / "RUN/checkpoints/last.ckpt"
    cut.write_bytes(cut.read_bytes()[:-200])
    assert str(last_checkpoint("RUN")) == "RUN/checkpoints/epoch_001.ckpt"
    assert capsys.readouterr().out == "passed over: RUN/checkpoints/last.ckpt is cut short\n"
    for path in cut.parent.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"RUN holds no checkpoint that is whole: RUN/.*/last.ckpt is empty \(0 bytes"):
        last_checkpoint("RUN")


def test_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    touch("RUN/last.ckpt")
    assert last_checkpoint("~/RUN") == here / "RUN" / "last.ckpt"


@pytest.mark.parametrize(
    ("files", "path", "said"),
    [
        (
            ["S/0/checkpoints/last.ckpt", "S/1/checkpoints/last.ckpt", "S/multirun.yaml"],
            "S",
            "S holds no checkpoint itself, and several runs may lie below; give one of S/0, S/1",
        ),
        (["R/config.yaml", "R/metrics.csv"], "R", "R is a run without checkpoints: it ended before it saved one, or "),
        (["R/model.pth", "R/a.txt"], "R", "R is no folder of a run; it holds weights, so give the file: R/model.pth"),
        (["R/a.txt", "R/b.txt"], "R", r"R holds neither .* nor what timm writes \(.*\); it holds a.txt, b.txt$"),
        (["R/"], "R", "R is an empty folder"),
        (
            ["H/blobs/x", "H/snapshots/abc/config.json"],
            "H",
            "H is a cache of the Hugging Face Hub; give the copy inside, H/snapshots/abc",
        ),
        (
            ["RUN/checkpoints/last.ckpt"],
            "RUN/checkpoints/lst.ckpt",
            "lst.ckpt does not exist: RUN/checkpoints has no lst.ckpt; it has last.ckpt",
        ),
        (["RUN_1/last.ckpt"], "RUN/last.ckpt", "RUN/last.ckpt does not exist: this folder has no RUN; it has RUN_1"),
        (["a.txt"], "RUN/last.ckpt", "this folder has no RUN; it holds a.txt"),
        (["a.ckpt"], "a.ckpt/b", "a.ckpt/b does not exist: a.ckpt is a file"),
        (["a.txt"], "facebook/dinov2", r"\(a repository of the Hugging Face Hub is written hf-hub:facebook/dinov2\)"),
    ],
)
def test_a_path_that_means_nothing_is_told_with_what_is_there(here, files, path, said):
    touch(*files)
    with pytest.raises(ValueError, match=said):
        read_checkpoint(path)


def test_an_evaluation_names_what_it_measured(here):
    touch("R/config.yaml", content="seed: 0\nckpt_path: RUN/last.ckpt\n")
    with pytest.raises(ValueError, match="a run without checkpoints, which measured or went on with RUN/last.ckpt"):
        read_checkpoint("R")


def test_links_and_pipes(here):
    os.symlink("gone.ckpt", "link.ckpt")
    with pytest.raises(ValueError, match="link.ckpt is a link to gone.ckpt, which does not exist"):
        read_checkpoint("link.ckpt")
    os.mkfifo("pipe.ckpt")
    with pytest.raises(ValueError, match="pipe.ckpt is neither a file nor a folder"):
        read_checkpoint("pipe.ckpt")


def test_a_folder_of_transformers(here):
    touch("R/config.json", content='{"architectures": ["Dinov2Model"]}')
    with pytest.raises(ValueError, match=r"is of the library transformers \(Dinov2Model\).* Give timm's model"):
        read_checkpoint("R")
