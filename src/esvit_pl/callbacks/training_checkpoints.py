"""When a training saves itself, so that a kill, a signal or a limit of time costs minutes."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copyfile
from time import monotonic
from typing import Any, NamedTuple

import torch
from pytorch_lightning.callbacks import Checkpoint

from esvit_pl.callbacks.intervals import Every
from esvit_pl.distributed import max_over_ranks, num_ranks
from esvit_pl.late import LateValue
from esvit_pl.safe_text import lines_for_terminal
from esvit_pl.signals import Signals
from esvit_pl.whole import replacing


class _Due(NamedTuple):
    """A save that is due."""

    signal: int
    """Which ends the run after it; 0 for none."""
    copy: str | None = None
    """Name of a second file, which stays."""


class TrainingCheckpoints(Checkpoint):
    """Keeps ``last.ckpt`` and, of the save before it, ``previous.ckpt``; and every so many epochs ``epoch_009.ckpt``.

    A training is saved after whole optimizer steps only, so that it goes on exactly, and not before the loggers have
    what the step or the epoch has logged: that is when the next batch begins, or when the training ends. A signal that
    asks the process to end (SIGTERM, SIGINT, SIGUSR1, SIGHUP), sent to any of the processes, lets all of them finish
    their step, save it and end with 128 plus the signal's number; on several processes that is the step after. During
    the measurements at an epoch's end it is the end of that epoch. A second signal ends the process as it would have
    without this callback.

    >>> from pytorch_lightning import Trainer
    >>> saver = TrainingCheckpoints("checkpoints", every="500steps")
    >>> trainer = Trainer(callbacks=[saver], logger=False, enable_progress_bar=False)

    Args:
        dirpath: the folder.
        every: when ``last.ckpt`` is renewed: ``500steps``, ``10min``, ``2h``, ``1epoch``, or several of them. The end
            of the training is always saved.
        every_n_epochs: epochs between the numbered files, which stay; 0 for none. ``epoch_009.ckpt`` is the tenth's.

    Raises:
        ValueError: `every` is not written like that.
        SystemExit, KeyboardInterrupt: a signal has come, and the step is saved.
    """

    def __init__(
        self, dirpath: str | Path, *, every: str | Sequence[str] = ("10min", "1epoch"), every_n_epochs: int = 0
    ) -> None:
        self.folder, self.every, self.every_n_epochs = Path(dirpath), Every.of(every), every_n_epochs
        self._signals = Signals()
        self._seen = self._saved = 0
        self._clock = monotonic()
        self._late: LateValue | None = None
        self._due: _Due | None = None
        self._end_of_epoch: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._seen = self._saved = trainer.global_step
        self._clock, self._late, self._due, self._end_of_epoch = monotonic(), None, None, None
        self._signals.listen()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._save_what_is_due(trainer)
        self._end_of_epoch = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._seen:
            return  # in the middle of an accumulated step
        self._seen = trainer.global_step
        if trainer.is_last_batch:
            return  # the end of the epoch follows
        if num_ranks() > 1:  # what the ranks agree on is read one step later, when a GPU has it already
            before, self._late = self._late, LateValue(self._wishes(pl_module.device))
            wishes = 0 if before is None else int(before.read())
        else:
            wishes = int(self._wishes("cpu"))
        if wishes or self._steps_are_due():
            self._due = _Due(wishes // 2)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        wishes, self._late = int(self._wishes(pl_module.device)), None
        epoch = trainer.current_epoch + 1
        numbered = self.every_n_epochs and epoch % self.every_n_epochs == 0
        epochs = self.every.epochs and epoch % self.every.epochs == 0
        if wishes or numbered or epochs or self._due or self._steps_are_due():
            self._due = _Due(wishes // 2, f"epoch_{epoch - 1:03d}.ckpt" if numbered else None)
            if trainer.max_epochs not in (None, -1):  # else Lightning would end this epoch a second time
                self._end_of_epoch = {"epoch": trainer.current_epoch, "fit_loop": trainer.fit_loop.state_dict()}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._save_what_is_due(trainer)
        if trainer.global_step > self._saved:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Say the place as Lightning reads it: a batch that is fetched and not begun would count as trained."""
        loops = checkpoint.get("loops")
        if loops is None:
            return
        if self._end_of_epoch is not None:
            checkpoint["epoch"], loops["fit_loop"] = self._end_of_epoch["epoch"], self._end_of_epoch["fit_loop"]
            return
        progress = loops["fit_loop"]["epoch_loop.batch_progress"]
        if progress["current"]["ready"] > progress["current"]["started"]:
            progress["is_last_batch"] = False
            for span in ("total", "current"):
                progress[span]["ready"] = progress[span]["started"]
            if _seems_validated(trainer, progress):
                loops["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._signals.leave()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._signals.leave()

    def _wishes(self, device: Any) -> torch.Tensor:
        """Twice the number of the signal that has come, or 0; and 1 if time is up. The largest of all ranks, int64."""
        seconds = monotonic() - self._clock
        is_late = bool(self.every.seconds) and seconds >= self.every.seconds
        return max_over_ranks(torch.full((), 2 * self._signals.number + is_late, dtype=torch.int64, device=device))

    def _steps_are_due(self) -> bool:
        steps = self.every.steps
        return bool(steps) and self._seen // steps > self._saved // steps

    def _save_what_is_due(self, trainer: Any) -> None:
        due, self._due = self._due, None
        if due is None:
            return
        self._save(trainer)
        if due.copy is not None and trainer.is_global_zero:
            _copy(self.folder / "last.ckpt", self.folder / due.copy)
        self._stop(due.signal, trainer)

    def _save(self, trainer: Any) -> None:
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero and last.exists():
            _copy(last, self.folder / "previous.ckpt")
        trainer.save_checkpoint(last)
        self._saved, self._clock = trainer.global_step, monotonic()

    def _stop(self, number: int, trainer: Any) -> None:
        if not number:
            return
        if trainer.is_global_zero:
            place = f"epoch {trainer.current_epoch + 1}, step {trainer.global_step:,}"
            line = f"{signal.Signals(number).name}: {place} is saved in {self.folder / 'last.ckpt'}"
            trainer.lightning_module.print(lines_for_terminal(line))  # above a bar, if there is one
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def _seems_validated(trainer: Any, progress: dict[str, Any]) -> bool:
    """Whether Lightning has validated between the last batch and this place; going on here it counts one step more."""
    every_n_epochs, every = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or every in (None, float("inf")):
        return False
    if every_n_epochs is None:
        return bool(progress["total"]["ready"] % every == 0)
    return bool((trainer.current_epoch + 1) % every_n_epochs == 0 and progress["current"]["ready"] % every == 0)


def _copy(source: Path, target: Path) -> None:
    """A second name for a file; where the file system has none, a copy. Both files are whole at any time."""
    with replacing(target) as draft:
        with suppress(OSError):
            os.link(source, draft)
            return
        copyfile(source, draft)
