"""Says when a training makes worse the weights that it began with."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pytorch_lightning import Callback

from esvit_pl.callbacks.collapse_monitor import CollapseMonitor
from esvit_pl.callbacks.intervals import is_due
from esvit_pl.callbacks.online import OnlineEvaluation

KNN, RANK = "knn/top1", "health/effective_rank"
REMEDY = (
    "the training makes the weights worse that it began with; lower the learning rate, of the backbone alone "
    "(init.lr_factor, init.layer_decay) or of all (optimizer.lr), let the heads learn first (init.warm_heads_epochs), "
    "or keep the weights of the start"
)


class HarmMonitor(Callback):
    """Compares a metric at the end of an epoch with that of the start, warns, and can stop the training.

    >>> monitor = HarmMonitor(patience=2, start=0.8)  # Trainer(callbacks=[OnlineKNN(...), monitor])
    >>> [monitor.judge(value) for value in (0.7, 0.79, 0.7, 0.6)]  # 0.79 lies within the tolerance
    [False, False, False, True]

    If `metric` is one of an `OnlineKNN` or `OnlineLinear` of the trainer, the start is measured before the first step,
    and each of its measurements is compared with it. Any other metric's start is its value after the first step
    (`CollapseMonitor` measures that of the weights before it), and its value is read at the end of every epoch.
    ``harm/start`` and ``harm/below``, the measurements in a row below the start, are logged. Weights, modes and random
    generators stay as they were.

    Args:
        metric: a metric that some callback before this one logs, more being better. None for ``knn/top1`` where an
            `OnlineKNN` measures it, else ``health/effective_rank``, which needs no labels.
        patience: measurements in a row below the start that are an alarm.
        tolerance: a measurement counts as below the start if it is by more than this share of it.
        on_harm: "warn", or "stop" to end the training, too.
        start: the start's value, if it is known.

    Raises:
        ValueError: a number or a word that cannot be; nobody who measures, before the first step; a `metric` that
            nobody logs, at the end of the first epoch.
    """

    def __init__(
        self,
        metric: str | None = None,
        *,
        patience: int = 3,
        tolerance: float = 0.02,
        on_harm: Literal["warn", "stop"] = "warn",
        start: float | None = None,
    ) -> None:
        if patience < 1:
            raise ValueError(f"HarmMonitor needs patience of 1 or more, got {patience}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"HarmMonitor needs tolerance of 0 or more and below 1, got {tolerance}")
        if on_harm not in ("warn", "stop"):
            raise ValueError(f"HarmMonitor needs on_harm 'warn' or 'stop', got {on_harm!r}")
        self.metric, self.start = metric, start
        self.patience, self.tolerance, self.on_harm = patience, tolerance, on_harm
        self.below = 0
        """Measurements in a row below the start."""

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "start": self.start, "below": self.below}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metric, self.start, self.below = (state_dict[name] for name in ("metric", "start", "below"))

    def judge(self, value: float) -> bool:
        """Count a measurement; whether it is an alarm."""
        assert self.start is not None
        self.below = self.below + 1 if value < self.start * (1 - self.tolerance) else 0
        return self.below >= self.patience

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.metric is None:
            self.metric = KNN if self._measuring(trainer, KNN) else RANK
            if self.metric == RANK and not any(isinstance(each, CollapseMonitor) for each in trainer.callbacks):
                raise ValueError(
                    "HarmMonitor compares k-NN or effective rank, and nobody measures them; add OnlineKNN "
                    "(callbacks.knn) or CollapseMonitor (callbacks.collapse) before it, or name another metric="
                )
        online = self._measuring(trainer, self.metric)
        if online is not None and self.start is None and trainer.global_step == 0:
            self.start = online.measured(trainer, pl_module).get(self.metric)
            if self.start is not None:
                pl_module.print(f"before the first step: {self.metric} {self.start:.4g}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.start is None and self.metric in trainer.callback_metrics:
            self.start = float(trainer.callback_metrics[self.metric])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        online, metrics = self._measuring(trainer, self.metric), trainer.callback_metrics
        if online is not None and not is_due(trainer, online.every_n_epochs):
            return
        if self.metric not in metrics or self.start is None:
            raise ValueError(
                f"HarmMonitor needs a callback before it that logs {self.metric}, got "
                f"{', '.join(metrics) or 'nothing'}; name one of these as metric="
            )
        value = float(metrics[self.metric])
        alarm = self.judge(value)
        for name, number in (("start", self.start), ("below", float(self.below))):
            pl_module.log(f"harm/{name}", number, on_step=False, on_epoch=True, batch_size=1)
        if not alarm:
            return
        if self.below == self.patience and trainer.is_global_zero:
            fall = f"{self.metric} was {self.start:.4g} at the start and is {value:.4g}"
            times = f"measurements in a row below the start: {self.below}"
            warnings.warn(f"HarmMonitor, epoch {trainer.current_epoch}: {fall}; {times}: {REMEDY}", stacklevel=2)
        if self.on_harm == "stop" and not trainer.should_stop:
            trainer.should_stop = True
            pl_module.print(f"HarmMonitor stops the training: {self.metric} {value:.4g}, at the start {self.start:.4g}")

    def _measuring(self, trainer: Any, metric: str | None) -> OnlineEvaluation | None:
        """The measurement at the end of epochs that gives this metric, if it is one of ours."""
        online = (callback for callback in trainer.callbacks if isinstance(callback, OnlineEvaluation))
        return next((callback for callback in online if str(metric).startswith(f"{callback.prefix}/")), None)
