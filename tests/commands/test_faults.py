"""Rows of docs/reliability.md that have no other test: a fault in a command as a user types it, and the sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esvit_pl.data import module as data_module
from esvit_pl.modules import Pretrainer

CHEAP = ["trainer.max_epochs=1", "callbacks=[checkpoint]", "optimizer.warmup_epochs=0"]
AGAIN = ["resume.allow=[dataset]", "evaluation.probes=[]"]


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, fault: Callable[[], None]) -> None:
    """Let `fault` happen before a step of a training."""
    step = Pretrainer.training_step

    def faulty(self: Pretrainer, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == number:
            fault()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pretrainer, "training_step", faulty)


def raises(error: BaseException) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def ends_in_a_sentence(outcome: Any, said: str) -> None:
    assert outcome.code == 1, outcome.err
    assert re.search(said, outcome.err), outcome.err
    assert "Traceback" not in outcome.err
    assert "HYDRA_FULL_ERROR" not in outcome.err


def slow(*values: Any) -> Any:
    """One of several of a kind, the first of which is in `make test`."""
    return pytest.param(*values, marks=pytest.mark.slow)


# -- checkpoints


def without(*keys: str) -> Callable[[Path], None]:
    """Take entries out of a checkpoint."""

    def change(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        for key in keys:
            del content[key]
        torch.save(content, path)

    return change


def with_format_9(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["esvit_pl"]["format"] = 9
    torch.save(content, path)


def with_half_of_the_optimizer(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content["optimizer_states"][0]["param_groups"][0]
    torch.save(content, path)


def with_a_bit_changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def in_place_of_the_file(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def zip_of(name: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"content")

    return make


def checkpoint(change: Callable[[Path], object], said: str, name: str, *, slow: bool = True) -> Any:
    """A change of a checkpoint; nearly all are slow together."""
    return pytest.param(change, said, marks=[pytest.mark.slow] if slow else [], id=name)


@pytest.mark.fault("checkpoint: cut short, or empty", "refused: what it is, and to take another one or copy it again")
@pytest.mark.fault("checkpoint: one bit has changed", "refused: the part that is damaged (checksums of every tensor)")
@pytest.mark.fault(
    "checkpoint: a text, a web page, an image, a zip or another file that holds no weights", "refused: what it is"
)
@pytest.mark.fault("checkpoint: weights of another architecture", "refused: names that are missing, names that it has")
@pytest.mark.fault(
    "checkpoint: no optimizer, no loops, or another part of a training is missing",
    "refused: what it lacks; `init_from=` in place of `ckpt_path=` begins a new training from its weights",
)
@pytest.mark.fault("checkpoint: of a newer format", "refused: its format, and the one that this version reads")
@pytest.mark.fault(
    "checkpoint: not there, a link to nowhere, an empty folder, a named pipe, a device",
    "refused: what it is; nobody waits for it",
)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        checkpoint(lambda path: os.truncate(path, 100_000), "its end is missing", "cut short", slow=False),
        checkpoint(with_bytes(b""), r"it is empty \(0 bytes\)", "empty"),
        checkpoint(with_a_bit_changed, r"it is damaged: archive/data/\d+ is not what was written", "a bit"),
        checkpoint(with_bytes(b"notes of mine"), "it is a text file, which begins with 'notes of mine'", "a text"),
        checkpoint(with_bytes(b"<!DOCTYPE html><html>"), "it is a web page", "html"),
        checkpoint(with_bytes(b"\xff\xd8\xff\xe0" + bytes(600)), "it is a picture", "an image"),
        checkpoint(with_bytes(bytes(range(144, 256)) * 20), "torch.save did not write it, or it is damaged", "noise"),
        checkpoint(zip_of("letter.txt"), "it is a zip archive that holds letter.txt; unpack it first", "a zip"),
        checkpoint(zip_of("a/data.pkl"), "torch.save did not write it, or it is damaged", "a zip like ours"),
        checkpoint(
            lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path),
            "the 35 names that this has are missing",
            "foreign",
        ),
        checkpoint(lambda path: torch.save({"epoch": 3}, path), "it holds a dict with epoch", "no weights"),
        checkpoint(without("optimizer_states"), "lacks the state of an optimizer, so there is no", "no optimizer"),
        checkpoint(without("loops"), "lacks the counters of the loops, so .* with init_from=", "no loops", slow=False),
        checkpoint(without("lr_schedulers", "global_step"), "lacks the number of steps, the state of the s", "no step"),
        checkpoint(without("pytorch-lightning_version"), "lacks the version of Lightning", "no version"),
        checkpoint(with_half_of_the_optimizer, "lacks a part of the optimizer's state", "half an optimizer"),
        checkpoint(with_format_9, "is of format 9, and this version of esvit_pl reads up to 2", "newer"),
        checkpoint(in_place_of_the_file(os.mkfifo), "is neither a file nor a folder", "named pipe", slow=False),
        checkpoint(in_place_of_the_file(Path.mkdir), "is an empty folder", "folder"),
        checkpoint(in_place_of_the_file(lambda path: path.symlink_to("nowhere")), "there is no such file", "link"),
        checkpoint(in_place_of_the_file(lambda path: path.symlink_to("/dev/zero")), "neither a file nor", "device"),
    ],
)
def test_a_checkpoint_that_is_none(pretrained, commands, pictures, tmp_path, change, said):
    path = tmp_path / "a.ckpt"
    shutil.copy(pretrained.folder / "checkpoints" / "epoch_000.ckpt", path)
    change(path)
    ends_in_a_sentence(commands.pretrain(pictures, f"ckpt_path={path}"), said)


# -- images that change


@pytest.fixture
def copied(pictures, tmp_path):
    return Path(shutil.copytree(pictures, tmp_path / "copied"))


@pytest.mark.fault(
    "images: one vanishes during a training, or changes to one that cannot be read",
    "the run ends and names it; with `dataset.on_bad_image=skip` another one takes its place and it is counted",
)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        slow(lambda path: path.write_text("notes of mine"), "its format is not one of"),
        slow(lambda path: os.truncate(path, 200), "(OSError|SyntaxError): "),
        slow(lambda path: os.truncate(path, 0), "the file is empty"),
    ],
    ids=["vanished", "text", "cut short", "empty"],
)
def test_images_that_vanish_or_change_during_a_training(commands, copied, monkeypatch, change, reason):
    at_step(monkeypatch, 1, lambda: [change(path) for path in copied.rglob("*.jpg")])
    outcome = commands.pretrain(copied, *CHEAP)
    ends_in_a_sentence(outcome, rf"cannot read the image file '{copied}/\w+/\d\d.jpg': .*{reason}")
    assert "dataset.on_bad_image=skip goes on without them" in outcome.err
    assert outcome.results["status"] == "failed"


def test_a_training_that_may_skip_goes_on_without_images_that_vanish(commands, copied, monkeypatch):
    at_step(monkeypatch, 1, lambda: [path.unlink() for path in (copied / "red").iterdir()])
    outcome = commands.pretrain(copied, *CHEAP, "dataset.on_bad_image=skip", "dataset.bad_image_budget=0.5")
    assert outcome.code == 0, outcome.err
    assert re.search(r"\nimages that could not be read: [1-9]", outcome.out)


@pytest.mark.fault(
    "images: other content under the same names when a run is resumed",
    "refused (a hash of 256 files, spread over all); `resume.allow=[dataset]` lets it pass, with a line",
)
@pytest.mark.fault(
    "images: files are added, removed or renamed between two runs",
    "the list of a large folder is made anew; a resumed run with other names or another number is refused",
)
@pytest.mark.slow
def test_a_run_is_not_resumed_on_other_images(pretrained, commands, copied):
    resume = f"ckpt_path={pretrained.folder}/checkpoints/epoch_000.ckpt"
    same = commands.pretrain(copied, resume, *AGAIN[1:])
    assert same.code == 0, same.err
    assert "allowed to differ" not in same.out
    one, other = copied / "red" / "03.jpg", copied / "red" / "04.jpg"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    said = r"\n  content of the training images \(dataset\): one in the checkpoint, another under the same names now"
    ends_in_a_sentence(commands.pretrain(copied, resume), said)
    allowed = commands.pretrain(copied, resume, *AGAIN)
    assert allowed.code == 0, allowed.err
    assert "\nallowed to differ: content of the training images (dataset): " in allowed.out
    one.write_bytes(content)
    one.rename(one.with_name("99.jpg"))
    ends_in_a_sentence(commands.pretrain(copied, resume), r"\n  names of the training images \(dataset\)")
    (copied / "red" / "99.jpg").unlink()
    ends_in_a_sentence(commands.pretrain(copied, resume), r"\n  training images \(dataset\): 36 in the ch.*, 35 now")


# -- disk and folders


@pytest.mark.fault(
    "disk: full, quota used up, or read-only while a checkpoint is written",
    "the run ends and says which file and what helps; the last good checkpoint stays; `results.json` says failed",
)
@pytest.mark.parametrize(
    ("number", "said"),
    [
        slow(errno.ENOSPC, "the disk is full; free some of it"),
        (errno.EDQUOT, "your share of the disk is used up; free some of it"),
        slow(errno.EROFS, "the file system is read-only; write somewhere else with out=FOLDER"),
    ],
)
def test_a_disk_that_takes_no_more_checkpoints(commands, pictures, monkeypatch, number, said):
    save, saves = torch.save, []

    def refused(content, file):
        saves.append(file)
        if len(saves) > 1:
            raise OSError(number, os.strerror(number))
        save(content, file)

    monkeypatch.setattr(torch, "save", refused)
    outcome = commands.pretrain(pictures, "trainer.max_epochs=2", "callbacks=[checkpoint]")
    ends_in_a_sentence(outcome, rf"^{outcome.last}: {said}")
    assert outcome.results["status"] == "failed"
    assert torch.load(outcome.last, weights_only=True)["global_step"] == 4


@pytest.mark.fault(
    "output folder: removed during a run",
    "the run goes on; the folder is made again with `config.yaml`, and a line says that the rows before are gone",
)
def test_an_output_folder_that_is_removed_is_made_again(commands, pictures, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    at_step(monkeypatch, 2, lambda: shutil.rmtree(folder))
    outcome = commands.pretrain(pictures, *CHEAP, folder=folder)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(f"note: {folder} was removed while the run goes on; it is made again, with config") == 1
    assert outcome.results["status"] == "finished"
    assert torch.load(outcome.last, weights_only=True)["global_step"] == 4
    assert "num_prototypes: 16" in (folder / "config.yaml").read_text()
    assert (folder / ".hydra" / "overrides.yaml").is_file()
    assert not (folder / "run.lock").exists()


@pytest.mark.fault("output folder: a file takes its place during a run", "the run ends and names it")
def test_an_output_folder_that_cannot_be_made_again(commands, pictures, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def replaced() -> None:
        shutil.rmtree(folder)
        folder.write_text("")

    at_step(monkeypatch, 2, replaced)
    ends_in_a_sentence(commands.pretrain(pictures, *CHEAP, folder=folder), f"^{folder}.*a file|File exists")


# -- memory


OF_A_GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1 GiB is"


@pytest.mark.fault(
    "memory: of the GPU (`CUDA out of memory`) or of the machine is full in a step",
    "the run ends and names the settings that need less: half the batch with twice the accumulation, "
    "`grad_checkpointing`, precision, views",
)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(OF_A_GPU), r"^the GPU's memory is full \(Tried to allocate 2.00 GiB\); what helps: "),
        slow(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes."),
            r"^memory is full \(tried to allocate 800 bytes\); what helps: ",
        ),
        slow(MemoryError(), r"^memory is full \(no more can be had\); what helps: "),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_memory_that_is_full_in_a_step(commands, pictures, monkeypatch, error, said):
    at_step(monkeypatch, 2, raises(error))
    outcome = commands.pretrain(pictures, *CHEAP)
    ends_in_a_sentence(outcome, said)
    assert "datamodule.batch_size=4 trainer.accumulate_grad_batches=2 for the same step, mod" in outcome.err
    assert "trainer.precision=bf16-mixed" in outcome.err
    assert outcome.results["status"] == "failed"
    assert len(outcome.err.splitlines()) == 1


def test_memory_that_no_machine_has(commands, pictures):
    outcome = commands.pretrain(pictures, *CHEAP, f"loss.num_prototypes={10**13}")
    ends_in_a_sentence(outcome, r"^memory is full \(tried to allocate \d+ bytes\)")


# -- numbers


@pytest.mark.fault("number: `loss.num_prototypes=1`", "a warning: the loss is always 0, and nothing is learnt")
@pytest.mark.fault("number: `optimizer.lr=0`", "a line: nothing is learnt")
@pytest.mark.fault("number: `module.momentum=1`", "a line: the teacher keeps the weights that it begins with")
def test_numbers_with_which_nothing_is_learnt(commands, pictures):
    with pytest.warns(UserWarning, match="loss.num_prototypes=1: with one prototype the loss is always 0"):
        outcome = commands.pretrain(pictures, *CHEAP, "loss.num_prototypes=1", "optimizer.lr=0", "module.momentum=1")
    assert outcome.code == 0, outcome.err
    assert "\noptimizer.lr=0: nothing is learnt\n" in outcome.out
    assert "\nmodule.momentum=1: the teacher keeps the weights that it begins with\n" in outcome.out


@pytest.mark.fault("number: more loading processes than cores", "a line with both numbers, once")
def test_more_loading_processes_than_cores(commands, pictures, monkeypatch):
    monkeypatch.setattr(data_module, "cores", lambda: 1)
    outcome = commands.pretrain(pictures, *CHEAP, "datamodule.num_workers=2")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("note: num_workers=2 loading processes on 1 CPU cores") == 1


# -- several processes


@pytest.mark.fault(
    "processes: their number does not divide the images",
    "each epoch leaves out the rest, and a line says how many; fewer images than one step are refused",
)
@pytest.mark.fault(
    "processes: a run is resumed with another number of them",
    "refused where the images in a step differ: which, and what keeps them (`datamodule.batch_size=`)",
)
def test_a_run_of_one_process_is_not_resumed_by_three_with_a_larger_step(pretrained, commands, pictures):
    words = [f"ckpt_path={pretrained.last}", "trainer=ddp_cpu", "trainer.devices=3"]
    said = r"images in a step \(trainer.devices\): 8 \(8 x 1 processes x 1 acc.* checkpoint, 24 \(8 x 3 processes"
    ends_in_a_sentence(commands.pretrain(pictures, *words), said)


@pytest.mark.slow
def test_two_processes_with_fewer_images_than_one_step(commands, pictures, tmp_path):
    words = ["trainer=ddp_cpu", "trainer.devices=2", "datamodule.batch_size=20", f"hydra.run.dir={tmp_path / 'run'}"]
    done = shell(*commands.tiny_pretraining(pictures, *CHEAP, *words))
    assert done.returncode == 1
    assert "one step needs 40 images (batch_size 20 x 2 ranks x 1 accumulated batch), and there are 36" in done.stderr
    assert "Traceback" not in done.stderr


# -- the switch


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esvit_pl.commands.pretrain", *words]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.fault("every one of these", "no traceback; `HYDRA_FULL_ERROR=1` in the environment shows it")
@pytest.mark.slow
def test_the_traceback_is_one_switch_away(commands, pictures):
    words = commands.tiny_pretraining(pictures, "module.momentum=2")
    sentence = "module: the teacher needs momentum between 0 and 1, got 2"
    plain, full = shell(*words), shell(*words, HYDRA_FULL_ERROR="1")
    assert (plain.returncode, plain.stderr) == (1, f"{sentence}\n")
    assert full.returncode == 1
    assert "\nTraceback (most recent call last):\n" in full.stderr
    assert re.search(r'/esvit_pl/\w+.py", line \d+, in __init__\n', full.stderr)
    assert sentence in full.stderr
