"""Figures that are drawn during training: the learning curve, and those of a function of yours."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback

from esvit_pl.callbacks.intervals import check_interval, is_due
from esvit_pl.evaluation.names import KNN_TOP1, is_training_loss
from esvit_pl.isolation import undisturbed
from esvit_pl.loggers import log_figure, save_figure
from esvit_pl.visualize import learning_curve, save

if TYPE_CHECKING:
    from torch import Tensor


class LearningCurve(Callback):
    """Draws losses and an accuracy against epochs into one PNG file, again after every epoch.

    >>> curve = LearningCurve("logs/figures", accuracy=None)  # Trainer(callbacks=[curve])
    >>> curve.path.as_posix()
    'logs/figures/learning_curve.png'

    It reads the metrics that the module or a callback has logged from ``trainer.callback_metrics``. So it needs no
    logger and works in any project; after resuming it continues the old curve. Losses are read every
    ``trainer.log_every_n_steps`` steps. Metrics of callbacks that are listed after this one are drawn one epoch later.

    Args:
        folder: of the file; it is created if it does not exist. Only the first process writes.
        losses: names of metrics for the upper picture; those that nobody logs are left out. None means every loss that
            the training logs, ``train/<name>_loss``; with an empty list there is no upper picture.
        accuracy: name of a fraction 0-1 for the lower picture, or None.
        baselines: {name: accuracy in 0-1}, dashed lines in the lower picture.
        every_n_epochs: draw after so many epochs, and after the last one.
        name: of the file; its ending chooses the format. Two of these callbacks in one run need two names.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        losses: Sequence[str] | None = None,
        accuracy: str | None = KNN_TOP1,
        baselines: Mapping[str, float] | None = None,
        every_n_epochs: int = 1,
        name: str = "learning_curve.png",
    ) -> None:
        check_interval("LearningCurve", every_n_epochs)
        self.losses = None if losses is None else [losses] if isinstance(losses, str) else list(losses)
        if self.losses == [] and not accuracy:
            raise ValueError(f"LearningCurve draws losses, an accuracy or both, got {losses=} and {accuracy=}")
        self.accuracy = accuracy
        self.baselines = baselines
        self.every_n_epochs = every_n_epochs
        self.path = Path(folder) / name
        self.rows: list[dict[str, float]] = []
        """One dict a step, {"step", "epoch", name: value}, sorted."""
        self._seen: dict[str, Tensor] = {}
        self._drawn, self._warned = True, False

    @property
    def state_key(self) -> str:
        return f"LearningCurve[{self.path.name}]"

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        # What was logged at the last epoch's end, after this callback.
        self._collect(trainer, trainer.current_epoch - 1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:
            self._collect(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._collect(trainer, trainer.current_epoch)
        if is_due(trainer, self.every_n_epochs):
            self._draw(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.rows:
            self._collect(trainer, int(self.rows[-1]["epoch"]))
        self._draw(trainer)

    def _collect(self, trainer: Any, epoch: int) -> None:
        """Take the values that were logged since the last call. Runs on all processes: Lightning may sum over them."""
        values = {name: value for name, value in trainer.callback_metrics.items() if self._takes(name)}
        # Lightning keeps a value until a new one is logged, which is another tensor even if the value is the same.
        fresh = {name: value for name, value in values.items() if value is not self._seen.get(name)}
        self._seen |= fresh
        step = trainer.global_step - 1
        if not fresh or step < 0:
            return
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step, "epoch": epoch})
        row = self.rows[-1]
        numbers = {name: float(value) for name, value in fresh.items()}
        self._drawn &= numbers.items() <= row.items()
        row.update(numbers)

    def _takes(self, name: str) -> bool:
        return name == self.accuracy or (is_training_loss(name) if self.losses is None else name in self.losses)

    def _draw(self, trainer: Any) -> None:
        if not trainer.is_global_zero:
            return
        if not self.rows and not self._warned:
            self._warned = True
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            losses = ["train/*_loss"] if self.losses is None else self.losses
            names = [*losses, *([self.accuracy] if self.accuracy else [])]
            warnings.warn(
                f"LearningCurve draws {', '.join(names)}, and none of them was logged so far; there is {logged}. "
                "Name metrics that the module logs",
                stacklevel=2,
            )
        elif self.rows and not self._drawn:
            figure = learning_curve(self.rows, self.baselines, losses=self.losses, accuracy=self.accuracy)
            save(figure, self.path)
            self._drawn = True


class LogFigures(Callback):
    """Calls a function at the end of an epoch and gives the figures that it draws to the loggers.

    >>> from matplotlib.figure import Figure
    >>> figures = LogFigures(lambda trainer, module: {"empty": Figure()}, every_n_epochs=5)  # Trainer(callbacks=[...])

    `loggers.log_figure` says which loggers can take figures. If none can, PNG files are written into `folder`. The
    function gets the module in eval mode, under ``no_grad``; training continues exactly as without this callback.

    Args:
        function: (trainer, module) -> a figure of matplotlib, a dict {name: figure}, or None for nothing this time.
            It is called on every process, so that it may gather from all; only the first one's figures are kept.
        every_n_epochs: draw after so many epochs, and after the last one.
        name: of the figure in the logger; those of a dict become ``<name>/<key>``.
        folder: for PNG files; None is ``figures`` in the Trainer's ``default_root_dir``.
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        *,
        every_n_epochs: int = 1,
        name: str = "figure",
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        check_interval("LogFigures", every_n_epochs)
        if not callable(function):
            raise ValueError(
                f"LogFigures needs a function (trainer, module) -> figure, got {type(function).__name__}, which "
                "cannot be called"
            )
        self.function = function
        self.every_n_epochs = every_n_epochs
        self.name = name
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        with undisturbed(pl_module):
            figures = named_figures(self.name, self.function(trainer, pl_module))
            if trainer.is_global_zero:
                for name, figure in figures.items():
                    self._show(trainer, name, figure)

    def _show(self, trainer: Any, name: str, figure: Any) -> None:
        step = trainer.global_step - 1
        taken = [log_figure(logger, name, figure, step) for logger in trainer.loggers]
        if not any(taken):
            save_figure(self.folder or Path(trainer.default_root_dir) / "figures", name, figure, step)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(figure)  # pyplot keeps every figure that was made with it until the process ends


def named_figures(name: str, drawn: Any) -> dict[str, Any]:
    """What a drawing function returned, as {name: figure}.

    Raises:
        ValueError: something in it is not a figure.
    """
    if drawn is None:
        return {}
    figures = (
        {f"{name}/{key}": figure for key, figure in drawn.items()} if isinstance(drawn, Mapping) else {name: drawn}
    )
    for key, figure in figures.items():
        if not hasattr(figure, "savefig"):
            raise ValueError(
                f"{key} must be a figure of matplotlib, a dict of them or None, got {type(figure).__name__}"
            )
    return figures
