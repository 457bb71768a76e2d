"""Warns when a self-supervised training collapses, and says what to look at."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from esvit_pl.callbacks.lookup import find_part
from esvit_pl.distributed import gather_uneven, mean_over_ranks
from esvit_pl.evaluation.features import pooled
from esvit_pl.metrics.collapse import (
    diversity,
    effective_rank,
    feature_spread,
    region_statistics,
)
from esvit_pl.metrics.health import HEALTHY, Healthy, measure_of, symptom

FROM_EMBEDDING = ("feature_spread", "effective_rank")
FROM_FEATURES = (*FROM_EMBEDDING, "region_diversity")


class CollapseMonitor(Callback):
    """Measures the health of a training (`metrics.collapse`) in any Lightning module, warns, and can stop it.

    >>> monitor = CollapseMonitor(every_n_steps=50, stop=True)  # Trainer(callbacks=[monitor])
    >>> measures = monitor.measure({"embedding": torch.ones(8, 4)}, torch.device("cpu"))  # all images look the same
    >>> measures["feature_spread"] < 0.001
    True

    It reads what ``training_step`` returns, so it needs no forward pass of its own:

    - ``outputs["embedding"]`` (b d), preferably the teacher's, gives ``feature_spread`` and ``effective_rank``;
    - ``outputs["regions"]`` (b r c), likewise, gives ``region_diversity``;
    - ``outputs["diagnostics"]``, {name: scalar}, may hold ``teacher_entropy_share`` (`metrics.entropy_share`: entropy
      divided by ln k), ``kl`` (teacher to student: cross entropy minus entropy, in nats), ``matched_share``,
      ``center_norm`` and ``chance_share`` (the loss divided by that of guessing); with several heads as ``view_kl``,
      ``region_kl``, ...

    It logs the mean over the last ``window`` measurements as ``health/<name>``, and ``health/alarm``: 1 while any of
    them lies outside its healthy range, else 0. ModelCheckpoint and EarlyStopping can monitor all of these. The images
    of all processes are measured together, so that every process comes to the same decision.

    Args:
        embedding: where the embedding comes from if the step returns none: the path of a network in the module, whose
            first output in a step is taken (a tensor (b d) or ``Features``), or a function of the step's outputs.
        every_n_steps: measure at the first call of ``training_step`` and at every n-th. Only then the CPU waits for the
            GPU.
        window: how many measurements are averaged; there is no alarm before so many exist.
        start_epoch: no alarms before it, because features of an untrained network say little; may be a fraction.
        stop: end the training after ``patience`` measurements in a row with an alarm.
        patience: see ``stop``.
        thresholds: {measure or full name: (low, high)} that replace those in `HEALTHY`; None for no bound. ``kl`` holds
            for every head, ``region_kl`` for one.
        prefix: of the metrics' names.

    It does not change weights, train or eval modes, random generators or ``global_step``.
    """

    def __init__(
        self,
        embedding: str | Callable[[Any], Any] | None = None,
        *,
        every_n_steps: int = 10,
        window: int = 5,
        start_epoch: float = 1.0,
        stop: bool = False,
        patience: int = 3,
        thresholds: Mapping[str, Sequence[float | None] | None] | None = None,
        prefix: str = "health",
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("window", window), ("patience", patience)):
            if value < 1:
                raise ValueError(f"CollapseMonitor needs {name} of 1 or more, got {value}")
        self.embedding = embedding
        self.every_n_steps = every_n_steps
        self.window = window
        self.start_epoch = start_epoch
        self.stop = stop
        self.patience = patience
        self.healthy = {**HEALTHY, **{name: _range(name, bounds) for name, bounds in (thresholds or {}).items()}}
        self.prefix = prefix
        self._steps = self._alarms = 0  # calls of training_step; measurements in a row with an alarm
        self._recent: dict[str, deque[float]] = {}
        self._warned: set[str] = set()
        self._reported_missing = self._resumed = False
        self._hook: Any = None
        self._waits_for_output = False
        self._output: Any = None

    @property
    def state_key(self) -> str:
        return f"CollapseMonitor[{self.prefix}]"

    def state_dict(self) -> dict[str, Any]:
        recent = {name: list(values) for name, values in self._recent.items()}
        return {"steps": self._steps, "alarms": self._alarms, "recent": recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._alarms = state_dict["steps"], state_dict["alarms"]
        self._recent = {name: deque(values, self.window) for name, values in state_dict["recent"].items()}
        self._resumed = True

    # Hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and isinstance(self.embedding, str):
            network = find_part("CollapseMonitor", pl_module, self.embedding, argument="embedding")
            if not isinstance(network, nn.Module):
                raise ValueError(
                    f"CollapseMonitor needs a network at embedding={self.embedding!r}, found {type(network).__name__}; "
                    "give the path of a torch module, or a function of the step's outputs"
                )
            self._unhook()
            self._hook = network.register_forward_hook(self._keep)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._waits_for_output = self._hook is not None and self._due

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        due, self._waits_for_output = self._due, False
        resumed, self._resumed = self._resumed, False
        self._steps += 1
        if not due:
            if resumed and self._measured_among(batch_idx):
                self._log(pl_module)
            return
        measures = self.measure(outputs if isinstance(outputs, Mapping) else {}, trainer.strategy.root_device)
        self._output = None
        if not self._reported_missing:
            self._report_missing(trainer, pl_module, measures)
        started = trainer.current_epoch + batch_idx / trainer.num_training_batches >= self.start_epoch
        if not started:
            self._recent.clear()  # measurements before the start are logged, but cause no alarm
        self._remember(measures)
        alarms = self.judge() if started else {}
        self._alarms = self._alarms + 1 if alarms else 0
        self._log(pl_module)
        self._warn(trainer, alarms)
        if self.stop and self._alarms >= self.patience and not trainer.should_stop:
            self._stop(trainer)

    def _log(self, pl_module: Any) -> None:
        for name, value in {**self.means(), "alarm": float(self._alarms > 0)}.items():
            pl_module.log(f"{self.prefix}/{name}", value, on_step=True, on_epoch=False, batch_size=1)

    def _measured_among(self, batches: int) -> bool:
        """Whether one of so many steps before this one was measured: those of this epoch. Lightning logs what was
        measured again at every later step of the epoch, and a run that goes on in the epoch does the same."""
        before = self._steps - 1
        return before - max(before // self.every_n_steps * self.every_n_steps - 1, 0) <= batches

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._unhook()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._unhook()

    # From a step's outputs to an alarm

    @torch.no_grad()
    def measure(self, outputs: Mapping[str, Any], device: torch.device) -> dict[str, float]:
        """{measure: value} of this step over all processes: features are gathered, diagnostics are averaged."""
        found: dict[str, Tensor] = {}
        features, regions = self._embedding(outputs), outputs.get("regions")
        if features is not None and len(features := gather_uneven(features)) > 1:
            found |= {"feature_spread": feature_spread(features), "effective_rank": effective_rank(features)}
        if regions is not None:
            found["region_diversity"] = diversity(gather_uneven(region_statistics(regions)))
        given = {name: value for name, value in (outputs.get("diagnostics") or {}).items() if measure_of(name)}
        if given:
            values = [torch.as_tensor(value, dtype=torch.float64, device=device).mean() for value in given.values()]
            found |= dict(zip(given, mean_over_ranks(torch.stack(values)), strict=True))
        return {name: float(value) for name, value in found.items()}

    def means(self) -> dict[str, float]:
        """Measure -> its mean over the last `window` measurements."""
        return {name: sum(values) / len(values) for name, values in self._recent.items()}

    def judge(self) -> dict[str, str]:
        """{measure outside its healthy range: what that means and what to do}."""
        alarms = {}
        for name, mean in self.means().items():
            measure = measure_of(name)
            assert measure is not None
            healthy = self.healthy.get(name, self.healthy[measure])
            if len(self._recent[name]) == self.window and not healthy.holds(mean):
                alarms[name] = symptom(name, mean, healthy)
        return alarms

    @property
    def _due(self) -> bool:
        return self._steps == 0 or (self._steps + 1) % self.every_n_steps == 0

    def _embedding(self, outputs: Mapping[str, Any]) -> Tensor | None:
        if isinstance(self.embedding, str):
            return None if self._output is None else pooled(self._output)
        output = outputs.get("embedding") if self.embedding is None else self.embedding(outputs)
        return None if output is None else pooled(output)

    def _keep(self, network: nn.Module, inputs: Any, output: Any) -> None:
        if self._waits_for_output:
            self._output, self._waits_for_output = output, False

    def _remember(self, measures: Mapping[str, float]) -> None:
        for name, value in measures.items():
            self._recent.setdefault(name, deque(maxlen=self.window)).append(value)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._output = None

    # Messages

    def _report_missing(self, trainer: Any, pl_module: Any, measures: Mapping[str, float]) -> None:
        self._reported_missing = True
        seen = {measure_of(name) for name in measures}
        # A module that gives any diagnostics knows which ones its loss has.
        looked_for = FROM_FEATURES if seen - set(FROM_FEATURES) else HEALTHY
        missing = [name for name in looked_for if self.healthy[name] != Healthy() and name not in seen]
        reasons = {name: _missing(name, self.embedding) for name in missing}
        if not missing:
            return
        message = f"CollapseMonitor watches {', '.join(measures) or 'nothing'}; it misses "
        message += "; ".join(
            f"{', '.join(name for name in missing if reasons[name] == reason)}: {reason}"
            for reason in dict.fromkeys(reasons.values())
        )
        if measures:
            pl_module.print(message)
        elif trainer.is_global_zero:
            warnings.warn(message, stacklevel=2)

    def _warn(self, trainer: Any, alarms: Mapping[str, str]) -> None:
        """Warn once for each measure, and again if it was healthy in between."""
        new = [text for name, text in alarms.items() if name not in self._warned]
        self._warned = set(alarms)
        if new and trainer.is_global_zero:
            text = "\n".join(f"  {self.prefix}/{text}" for text in new)
            warnings.warn(f"CollapseMonitor, step {self._steps}, epoch {trainer.current_epoch}:\n{text}", stacklevel=2)

    def _stop(self, trainer: Any) -> None:
        trainer.should_stop = True
        if trainer.is_global_zero:
            warnings.warn(f"CollapseMonitor stops the training after {self._alarms} alarms in a row", stacklevel=2)


def _range(name: str, bounds: Sequence[float | None] | None) -> Healthy:
    if measure_of(name) is None:
        raise ValueError(
            f"CollapseMonitor has no measure thresholds.{name}; give {', '.join(HEALTHY)}, or a name that ends in "
            "one of them after a '_'"
        )
    if bounds is not None and len(bounds) != 2:
        raise ValueError(f"CollapseMonitor needs thresholds.{name} as (low, high), None for no bound, got {bounds}")
    return Healthy(*(bounds or ()))


def _missing(measure: str, embedding: Any) -> str:
    """Why a measure is missing, and what to do."""
    if measure == "region_diversity":
        return "training_step returns no 'regions' (b, regions, channels)"
    if measure not in FROM_EMBEDDING:
        return "training_step returns none in 'diagnostics', a dict {name: scalar} (functions: esvit_pl.metrics)"
    if isinstance(embedding, str):
        return f"the network at embedding={embedding!r} did not run in training_step, or got a single image"
    return "training_step returns no 'embedding' (b, d) of several images; return it, or name a network in embedding="
