"""Progress of a training: a bar in a terminal, elsewhere a line for every epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import ceil
from time import monotonic
from typing import Any

from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar

from esvit_pl.evaluation.names import FINETUNE_LOSS, PROBE_LOSS, PROBES, is_training_loss, loss_title, main_metric
from esvit_pl.printing import record, say
from esvit_pl.safe_text import lines_for_terminal


def shown(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The losses and accuracies among the metrics, as {short name: text}."""
    losses = {loss_title(name).removesuffix(" loss"): name for name in metrics if is_training_loss(name)}
    of_labels = next((name for name in (PROBE_LOSS, FINETUNE_LOSS) if name in metrics), None)
    losses |= {} if of_labels is None else {"loss": of_labels}
    accuracies = {title: main_metric(probe) for probe, title in PROBES.items() if main_metric(probe) in metrics}
    texts = {title: f"{float(metrics[name]):.3f}" for title, name in losses.items()}
    return texts | {title: f"{100 * float(metrics[name]):.1f}%" for title, name in accuracies.items()}


def duration(seconds: float) -> str:
    """42 -> "42 s", 190 -> "3 min", 8000 -> "2 h 13 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def epoch_line(epoch: int, epochs: int | None, metrics: Mapping[str, Any], left: float | None) -> str:
    """One line about an epoch.

    Args:
        epoch: how many epochs are done.
        epochs: how many there will be, None if that is not known.
        metrics: values by name.
        left: seconds until the end, None if that is not known.

    >>> epoch_line(3, 12, {"train/view_loss": 2.4, "knn/top1": 0.431}, left=190.0)
    'epoch  3/12  view 2.400  k-NN 43.1%  3 min left'
    """
    parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}" if epochs else f"epoch {epoch}"]
    parts += [f"{name} {text}" for name, text in shown(metrics).items()]
    if "time/images_per_second" in metrics:
        parts.append(f"{float(metrics['time/images_per_second']):,.0f} images/s")
    if left is not None:
        parts.append(f"{duration(left)} left" if left > 0 else "done")
    return "  ".join(parts)


class EpochLines(ProgressBar):
    """Says `epoch_line` at the end of every epoch, on the first process, with what was measured in this epoch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start, self._first_epoch = monotonic(), 0
        self._before: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._start, self._first_epoch = monotonic(), trainer.current_epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._before = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if not getattr(self, "is_enabled", True) or not trainer.is_global_zero:
            return
        done = trainer.current_epoch + 1
        epochs = _epochs(trainer)
        per_epoch = (monotonic() - self._start) / max(done - self._first_epoch, 1)
        left = None if epochs is None else per_epoch * (epochs - done)
        # Lightning keeps the values of earlier epochs, and makes a new tensor of whatever is logged.
        new = {name: value for name, value in trainer.callback_metrics.items() if value is not self._before.get(name)}
        self.print(epoch_line(done, epochs, new, left))


class PlainProgress(EpochLines):
    """Prints `epoch_line` at the end of every epoch, on the first process; for log files and pipes.

    >>> progress = PlainProgress()  # Trainer(callbacks=[progress])
    >>> progress.is_enabled
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """``LightningModule.print`` asks for it, to print beside a bar without breaking its line."""
        return self._enabled

    def print(self, *words: Any, sep: str = " ", **_: Any) -> None:
        say(sep.join(map(str, words)))

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False


class TerminalProgress(EpochLines, TQDMProgressBar):
    """Lightning's bar, with the losses and the last accuracies beside it, and above it a line for every epoch.

    >>> progress = TerminalProgress(refresh_rate=10)  # Trainer(callbacks=[progress])
    """

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, int | str | float | dict[str, float]]:
        return {**shown({**trainer.callback_metrics, **trainer.progress_bar_metrics})}

    def print(self, *words: Any, sep: str = " ", **_: Any) -> None:
        """Above the bar, and into the log; ``LightningModule.print`` comes here, too."""
        lines = lines_for_terminal(sep.join(map(str, words)))
        super().print(lines)
        record(lines)


class ImagesBar(TQDMProgressBar):
    """Lightning's bar over images that are only looked at; Lightning's own word for that is "Validation"."""

    @property
    def validation_description(self) -> str:
        return "images"


def _epochs(trainer: Any) -> int | None:
    """How many epochs there will be, the last one perhaps cut short by ``max_steps``; None if that is not known."""
    epochs: int | None = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    if trainer.max_steps is None or trainer.max_steps < 0:
        return epochs
    per_epoch = max(trainer.num_training_batches // trainer.accumulate_grad_batches, 1)
    stopped_by_steps: int = ceil(trainer.max_steps / per_epoch)
    return stopped_by_steps if epochs is None else min(epochs, stopped_by_steps)


def progress_bar(refresh_rate: int = 1) -> ProgressBar:
    """A bar in a terminal, plain lines elsewhere. In a notebook's output every state of a bar would stay.

    Args:
        refresh_rate: batches between two updates of the bar.
    """
    notebook = "ipykernel" in sys.modules  # its stdout claims to be a terminal
    return TerminalProgress(refresh_rate=refresh_rate) if sys.stdout.isatty() and not notebook else PlainProgress()
