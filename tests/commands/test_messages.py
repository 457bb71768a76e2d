"""What a user reads after a mistake: one sentence on stderr, of ours, and the exit code that the shell expects."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = ["experiment=laptop", "dataset.root=photos"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        (
            "pretrain",
            ["optimizer.lr=abc"],  # told before what is missing: the images
            "optimizer.lr=abc is no number; write one such as optimizer.lr=0.0005",
        ),
        (
            "pretrain",
            [*FOLDER, "callbacks.checkpoint.every_n_epochs=x"],
            "callbacks.checkpoint.every_n_epochs=x is no whole number; write one such as "
            "callbacks.checkpoint.every_n_epochs=10",
        ),
        ("pretrain", [*FOLDER, "paths.log_dir="], "paths.log_dir= is empty; give a folder, or leave it out"),
        ("pretrain", [*FOLDER, "seed=1.5"], "seed=1.5 is no whole number; write one such as seed=0"),
        (
            "pretrain",
            [*FOLDER, "~optimizer"],
            "~optimizer takes away settings that the command reads; leave it out, or",
        ),
        ("pretrain", ["photos/"], "photos/: write dataset=folder dataset.root=photos/"),
        (
            "pretrain",
            ["dataset=folder", "dataset.root=photoz/"],
            "dataset.root=photoz/: there is no such folder; did you mean dataset.root=photos/?",
        ),
        ("pretrain", [*FOLDER, "loss=dino"], "loss=dino: is called view here; write loss=view"),
        (
            "pretrain",
            [*FOLDER, "+loss.lr=1"],
            "loss.lr=1: EsViTObjective has no setting lr; it has view_weight, region_",
        ),
        ("pretrain", [*FOLDER, "trainer.max_epoch=3"], "trainer.max_epoch=3: did you mean trainer.max_epochs=3?"),
        (
            "pretrain",
            [*FOLDER, "ckpt_path=./nowhere", "dry_run=true"],
            "ckpt_path=./nowhere: there is no such file or folder (looked in ",
        ),
        (
            "knn",
            ["ckpt_path=hf-hub:me/mine", "module.k=abc"],
            "module.k=abc is neither a whole number nor a list; write one such as module.k=20",
        ),
        ("linear", ["ckpt_path=hf-hub:me/mine", "epochs=3"], "epochs=3: did you mean trainer.max_epochs=3?"),
        (
            "convert",
            ["ckpt_path=a.ckpt", "to=onnx", "out=x"],
            "ckpt_path=a.ckpt: there is no such file or folder (looked in ",
        ),
        (
            "table",
            ["photos", "columns=3"],
            "columns=3 is neither a word nor a list; write one such as columns=[knn/top1,",
        ),
        ("bench", ["memory", "batch_size=abc"], "batch_size=abc is no whole number; write one such as batch_size=10"),
    ],
)
def test_one_sentence_and_nothing_else(here, commands, command, words, sentence):
    makes_run = command in ("pretrain", "knn", "linear")
    outcome = commands.run(command, *words, folder=None if makes_run else Path("."))
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith(sentence)
    assert outcome.out == ""
    assert not (makes_run and outcome.folder.exists())


def test_a_name_in_a_config_that_yaml_does_not_read_as_text(here, commands):
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nloss:\n  off: 0.1\n")
    outcome = commands.run(
        "pretrain", "--config-dir", "mine", "experiment=own", "dataset=folder", "dataset.root=photos"
    )
    assert outcome.code == 1
    assert outcome.err.startswith("loss: a setting is called false (its value is 0.1); YAML reads on, off,")
    near = commands.run("pretrain", "--config-dir", "mine", "experiment=ownn")
    assert near.err == "experiment=ownn: did you mean experiment=own?\n"


def shell(*words: str, **options) -> subprocess.CompletedProcess:
    """A command in a process of its own."""
    program = Path(sys.executable).with_name(words[0])
    return subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.mark.fault(
    "output folder: it cannot be made or written",
    "refused before anything is read: why, and to give another with `out=`",
)
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--epochs", "3"], "--epochs 3: settings have no dashes; write trainer.max_epochs=3\n"),
        (["photos/"], "photos/: write dataset=folder dataset.root=photos/\n"),
        (
            ["dataset=folder", "dataset.root=photos", "hydra.run.dir=/proc/x"],
            "cannot write into /proc/x (No such file or directory); give another folder with out=\n",
        ),
        (
            ["dataset=folder", "dataset.root=photos", f"hydra.run.dir={'x' * 300}"],
            f"'{'x' * 40}...' of 300 bytes is ",
        ),
    ],
)
def test_in_a_shell(here, words, sentence):
    done = shell("esvit-pretrain", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_folder_is_told_before_torch_is_loaded(here):
    probe = (
        "import sys; from esvit_pl.commands.pretrain import main\n"
        "sys.argv[1:] = ['dataset=folder', 'dataset.root=photoz']\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr


@pytest.mark.fault("disk: full when a run begins", "refused: which folder cannot be written; nothing is trained")
def test_a_file_that_may_not_be_written_is_named(here):
    """A limit of the process stands for a full disk: the system refuses both in the same way."""
    done = shell(
        *("esvit-pretrain", "dataset=folder", "dataset.root=photos", "hydra.run.dir=run"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
    )
    assert done.returncode == 1
    assert done.stderr == "cannot write into run (File too large); give another folder with out=\n"
