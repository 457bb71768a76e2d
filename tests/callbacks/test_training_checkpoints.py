from __future__ import annotations

import os
import signal
from shutil import copytree
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import toys

from esvit_pl.augment import Recipe
from esvit_pl.callbacks import TrainingCheckpoints
from esvit_pl.callbacks import training_checkpoints as module
from esvit_pl.callbacks.intervals import Every
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.loggers import MetricsCSV, read_metrics
from esvit_pl.saving import WholeCheckpoints
from esvit_pl.signals import Signals

pytestmark = pytest.mark.filterwarnings("ignore:.*no `validation_step`")


@pytest.fixture(autouse=True)
def usual_handlers():
    """Those of a process in a terminal; a shell's background processes ignore SIGINT, those of nohup SIGHUP."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL}
    usual[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Saves(pl.Callback):
    """Notes at which steps something was saved; `before` a batch calls what is planned for that step."""

    def __init__(self, **planned: Any) -> None:
        self.steps, self.planned = [], {int(name[1:]): act for name, act in planned.items()}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.planned.get(trainer.global_step, int)()

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.steps.append(trainer.global_step)


def fit(root, saver, *, ckpt_path=None, module=None, planned=None, **options) -> Saves:
    """Epochs of three steps."""
    saves = Saves(**(planned or {}))
    trainer = toys.trainer(
        root, callbacks=[saves, saver], enable_checkpointing=True, plugins=[WholeCheckpoints()], **options
    )
    images = torch.randint(256, (13, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    splits = Splits(ArrayDataset(images, [f"{i}.png" for i in range(13)]))
    data = ImageDataModule(splits, Recipe(global_size=32, local_size=16, num_local=2), batch_size=4, num_workers=0)
    trainer.fit(module or toys.pretrainer(), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return saves


def step_of(path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ("1epoch", [3, 6, 9, 12]),
        ("3 epochs", [9, 12]),  # the end is always saved
        ("2steps", [2, 4, 6, 8, 10, 12]),
        ("5steps", [5, 10, 12]),
        (["4steps", "2epochs"], [4, 6, 8, 12]),
        ("1h", [12]),
    ],
    ids=str,
)
def test_it_is_saved_when_it_is_due(tmp_path, every, steps):
    saves = fit(tmp_path, TrainingCheckpoints(tmp_path / "kept", every=every), max_epochs=4)
    assert saves.steps == steps
    assert step_of(tmp_path / "kept" / "last.ckpt") == steps[-1]
    assert {path.name: step_of(path) for path in (tmp_path / "kept").iterdir()} == {
        f"{name}.ckpt": step for name, step in zip(("last", "previous"), reversed(steps), strict=False)
    }


def test_it_is_saved_after_whole_steps_only_and_when_time_is_up(tmp_path, monkeypatch):
    now = iter(range(0, 10**6, 20))  # every question takes twenty seconds
    monkeypatch.setattr(module, "monotonic", lambda: next(now))
    saver = TrainingCheckpoints(tmp_path / "kept", every=["1min"])
    saves = fit(tmp_path, saver, max_epochs=4, accumulate_grad_batches=3)
    assert saves.steps == [3, 4]  # one step an epoch; the time is looked at at the end of the epoch
    loops = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["total"]["processed"] == 12


def test_numbered_files_stay(tmp_path):
    fit(tmp_path, TrainingCheckpoints(tmp_path / "kept", every_n_epochs=2), max_epochs=5)
    steps = {path.name: step_of(path) for path in (tmp_path / "kept").iterdir()}
    assert steps == {"last.ckpt": 15, "previous.ckpt": 12, "epoch_001.ckpt": 6, "epoch_003.ckpt": 12}


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138), ("SIGINT", KeyboardInterrupt)]
)
@pytest.mark.parametrize(("before", "saved"), [(1, 2), (2, 3)], ids=["in an epoch", "in its last step"])
def test_a_signal_saves_the_step_and_the_training_goes_on_from_it(tmp_path, name, code, before, saved):
    """Lightning turns a KeyboardInterrupt into exit 1, after it."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    saver = TrainingCheckpoints(tmp_path / "kept", every="1h")
    planned = {f"_{before}": lambda: os.kill(os.getpid(), getattr(signal, name))}
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, saver, planned=planned)
    assert stop.value.code == code if isinstance(code, int) else isinstance(stop.value.__context__, code)
    assert step_of(tmp_path / "kept" / "last.ckpt") == saved
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    whole, resumed = toys.pretrainer(), toys.pretrainer()
    fit(tmp_path / "whole", TrainingCheckpoints(tmp_path / "whole"), module=whole)
    again = TrainingCheckpoints(tmp_path / "again")
    fit(tmp_path, again, module=resumed, ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert toys.largest_difference(toys.state(whole), toys.state(resumed)) == 0


@pytest.mark.parametrize(
    ("hook", "sent", "saved"), [("on_save_checkpoint", 2, 3), ("on_train_epoch_end", 3, 3)], ids=["save", "epoch's end"]
)
def test_a_signal_while_it_saves_or_measures_waits_for_the_end_of_that(tmp_path, monkeypatch, hook, sent, saved):
    before = getattr(Saves, hook)

    def signalled(self, trainer, *others):
        before(self, trainer, *others)
        if trainer.global_step == sent:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Saves, hook, signalled)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, TrainingCheckpoints(tmp_path / "kept", every="2steps"), max_epochs=4)
    assert stop.value.code == 143
    assert step_of(tmp_path / "kept" / "last.ckpt") == saved


def test_a_training_that_fails_gives_the_signals_back(tmp_path):
    def fail():
        raise KeyError("theirs")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError, match="theirs"):
        fit(tmp_path, TrainingCheckpoints(tmp_path), planned={"_1": fail})
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_ends_the_process_at_once():
    before = signal.getsignal(signal.SIGINT)
    signals = Signals()
    signals.listen()
    signal.raise_signal(signal.SIGINT)
    assert signals.number == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_are_ignored_or_taken_stay_so(monkeypatch):
    taken = lambda *_: None  # noqa: E731
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, taken)
    signals = Signals()
    signals.listen()
    found = [signal.getsignal(number) for number in before]
    signals.leave()
    for number, handler in before.items():
        signal.signal(number, handler)
    assert found == [signal.SIG_IGN, taken]


@pytest.mark.parametrize("words", ["often", "0steps", "1.5epochs", "10", "", ["1epoch", "-3min"]])
def test_bad_words(words):
    with pytest.raises(ValueError, match="every must be such as 500steps, 10min, 2h or 1epoch, or several of"):
        Every.of(words)
    assert Every.of(["90s", "2h", "3 steps"]) == (3, 7200, 0)


class Foreign(pl.LightningModule):
    """A module of somebody else, which logs its weight at every step and at every epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch.mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("weight", self.weight.detach(), batch_size=1)

    def on_train_epoch_end(self):
        self.log("at_the_end", self.weight.detach())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Foreign):
    def validation_step(self, batch, batch_idx):
        self.log("val", self.weight.detach() * batch.mean(), batch_size=1)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("every", "batches", "accumulate"), [("1steps", 6, 1), ("1epoch", 2, 2), (["1steps", "1epoch"], 4, 2)], ids=str
)
@pytest.mark.parametrize(
    "validation",
    [
        None,
        {"val_check_interval": 1.0},
        {"val_check_interval": 0.5},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": None, "val_check_interval": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("ends", ["max_epochs", "max_steps"])
def test_a_foreign_training_that_is_killed_after_any_save_goes_on_exactly(
    tmp_path, monkeypatch, validation, ends, batches, accumulate, every
):
    """What a kill right after a save leaves is the folder as it is then."""

    def train(folder, ckpt_path=None):
        module = Foreign() if validation is None else Validated()
        saver = TrainingCheckpoints(folder, every=every, every_n_epochs=2)
        length = {"max_epochs": 3} if ends == "max_epochs" else {"max_steps": 3 * batches // accumulate}
        options = {**length, **(validation or {}), "log_every_n_steps": 1, "accumulate_grad_batches": accumulate}
        plain = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        loader = torch.utils.data.DataLoader(torch.ones(batches), batch_size=1)  # which begins anew
        trainer = pl.Trainer(callbacks=[saver], logger=MetricsCSV(folder), num_sanity_val_steps=0, **options, **plain)
        trainer.fit(module, loader, None if validation is None else loader, ckpt_path=ckpt_path, weights_only=True)
        return module, read_metrics(folder / "metrics.csv")

    save, kept = pl.Trainer.save_checkpoint, []

    def save_and_keep(trainer, path, *others):
        save(trainer, path, *others)
        kept.append(copytree(tmp_path / "whole", tmp_path / f"killed_{len(kept)}"))

    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "save_checkpoint", save_and_keep)
        whole, rows = train(tmp_path / "whole")
    assert len(kept) == (3 if every == "1epoch" else 3 * batches // accumulate)
    for folder in kept:
        again, rows_again = train(folder, folder / "last.ckpt")
        assert rows_again == rows
        assert again.weight == whole.weight
