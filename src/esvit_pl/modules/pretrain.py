"""The training step of `esvit_pl.pretraining` in a LightningModule: hooks, schedules, logging, checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from esvit_pl.augment import Batch, EvaluationTransform
from esvit_pl.backbones.interface import Backbone
from esvit_pl.checkpoints.checkpoint import Checkpoint, Moments
from esvit_pl.checkpoints.init_from import check_continues, start_from_
from esvit_pl.checkpoints.pretraining_file import check_same_architecture, check_same_optimizer, describe
from esvit_pl.compiling import compile_
from esvit_pl.data import batch_size_of
from esvit_pl.ema import check_apart
from esvit_pl.modules.nonfinite import FiniteCheck, NonFiniteLoss
from esvit_pl.modules.place import between_batches, last_epoch, recount_batches, stand_at
from esvit_pl.objectives.interface import Objective
from esvit_pl.optim import OptimizerRecipe, parameter_groups, restore_, scaled_lr
from esvit_pl.pretraining import PretrainingStep, Report
from esvit_pl.schedules import LONG, Duration, Progress

__all__ = ["NonFiniteLoss", "Pretrainer"]


class Pretrainer(LightningModule):
    """EsViT's training (docs/recipes.md), or that of another objective, for a Trainer. Its parts arrive built.

    Logs ``train/<term>_loss``, the objective's diagnostics and every schedule as ``train/...``.

    Args:
        backbone: the student's.
        objective: what is learnt.
        optimizer: which optimizer, and its learning rate and weight decay over time.
        start_epoch: a new training stands here in all its schedules, as if so many epochs lay behind it; for one that
            starts from weights of an earlier training (`start_from`).
        lr_factor, layer_decay: of the backbone's learning rate (`optim.parameter_groups`).
        compile: let torch compile student and teacher, each into one graph for the crops of a batch. It takes minutes
            at the start and computes the same up to rounding.
        transform: how images are prepared for evaluation; it becomes the encoder's, and is kept in the checkpoints.
        config: plain dict that is kept in the checkpoints.
        settings: the other arguments of `PretrainingStep`: momentum, clip_grad, freeze_prototypes_epochs, ...

    Attributes:
        step: the `PretrainingStep`; `student`, `teacher` and `objective` are its parts.
        counts_anew: a resumed training has other steps in an epoch than its checkpoint, which lies at an epoch's end:
            steps are counted as if all earlier epochs had been such ones.

    Raises:
        NonFiniteLoss: on every rank, at the latest one step after a loss that was not finite, at the end of its epoch
            or before the next checkpoint. Nothing is saved from that step on.
        ValueError: settings that do not fit together, at the start of the fit.

    >>> from esvit_pl.backbones import build
    >>> from esvit_pl.objectives import EsViTObjective
    >>> swin = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    >>> objective = EsViTObjective(num_prototypes=8, hidden_dim=8, out_dim=4)
    >>> module = Pretrainer(swin, objective, OptimizerRecipe(lr=0.001), momentum=0.99)
    >>> module.encoder is module.teacher.backbone
    True
    """

    step: PretrainingStep

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        optimizer: OptimizerRecipe,
        *,
        start_epoch: int = 0,
        lr_factor: float = 1.0,
        layer_decay: float = 1.0,
        compile: bool = False,  # noqa: A002 - the name that configs type
        transform: EvaluationTransform | None = None,
        config: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if start_epoch < 0:
            raise ValueError(f"Pretrainer needs start_epoch of 0 or later, got {start_epoch}")
        if compile:
            backbone.check_compiles()
        step = PretrainingStep(backbone, objective, **settings)
        object.__setattr__(self, "step", step)  # past nn.Module: checkpoints name its parts without a prefix
        self.teacher, self.student, self.objective = step.teacher, step.student, step.objective
        if transform is not None:
            self.encoder.transform = transform
        self.optimizer = optimizer
        self.start_epoch = start_epoch
        self.slower = {"lr_factor": lr_factor, "layer_decay": layer_decay}
        self.groups()  # refuses what cannot be before any image is read
        self.compiles = compile
        self.config = config
        self.moments: Moments | None = None
        self.counts_anew = False
        self.steps_per_epoch = self.total_steps = self.global_batch = 0
        self._check = FiniteCheck()

    @property
    def encoder(self) -> Backbone:
        """What is evaluated, exported and watched: the teacher's backbone, without a teacher the student's."""
        return self.step.encoder

    @property
    def progress(self) -> Progress:
        """Where training stands; Lightning counts."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return Progress(self.trainer.global_step, self.total_steps, self.steps_per_epoch, done)

    # The step

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        losses = self.step(batch, self.progress)
        return {"loss": losses.total, **self.step.outputs}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._check.ask()  # about the step before, and not earlier: by now the GPU is busy with this one
        self.step.before_optimizer(self.progress)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        progress = self.progress
        self.optimizer.set_(optimizer, progress, global_batch=self.global_batch)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        report = self.step.finish(progress)
        self._check.note(report.finite, step=progress.step, epoch=self.current_epoch)
        self.log_step(report, progress)

    def log_step(self, report: Report, progress: Progress) -> None:
        lr, slower = self.optimizer.lr_at(progress, global_batch=self.global_batch), math.prod(self.slower.values())
        values: dict[str, Any] = {
            **report.measures,
            "lr": lr,
            **({} if slower == 1 else {"backbone_lr": lr * slower}),  # of its last block
            "weight_decay": self.optimizer.weight_decay_at(progress),
            **({} if self.teacher is None else {"teacher_momentum": self.step.momentum_at(progress)}),
            **self.objective.schedules(progress),
        }
        for name, value in values.items():
            if not isinstance(value, Tensor):
                # Lightning would copy the number to the GPU, and wait until all that was asked for before is done.
                dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
                value = torch.full((), value, dtype=dtype, device=self.device)
            self.log(f"train/{name}", value, prog_bar=name.endswith("_loss"), batch_size=self.global_batch)

    # The other places at which a loss that was not finite is noticed

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch or self.trainer.global_step == self.trainer.max_steps:
            self._check.ask()  # before any callback measures or saves at the end of the epoch

    def on_train_end(self) -> None:
        self._check.ask()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check.ask()
        trainer = self.trainer
        if "loops" in checkpoint:
            batches = int(trainer.num_training_batches)
            checkpoint["loops"] = between_batches(checkpoint["loops"], batches, trainer.accumulate_grad_batches)
            checkpoint["epoch"] = last_epoch(checkpoint["loops"], batches)
        optimizer = next(iter(trainer.optimizers), None)
        checkpoint["esvit_pl"] = describe(self.student, self.objective, self.config, self.encoder.transform, optimizer)

    # Before the first step

    def configure_optimizers(self) -> Optimizer:
        scaled = getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None) is not None
        optimizer = self.optimizer.build(self.groups(), scaled=scaled)
        if self.moments is not None:
            restore_(optimizer, dict(self.student.named_parameters(remove_duplicate=False)), self.moments.of)
        return optimizer

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of parameters."""
        return parameter_groups(self.student, decaying=self.optimizer.decaying, **self.slower)

    def on_fit_start(self) -> None:
        if self.trainer.gradient_clip_val:
            raise ValueError(
                f"trainer.gradient_clip_val={self.trainer.gradient_clip_val} beside the pretrainer's own clipping of "
                "each parameter; leave it null and set module.clip_grad"
            )
        if self.optimizer.fused and self.trainer.precision == "16-mixed":
            raise ValueError(
                "optimizer.fused=true with trainer.precision=16-mixed would clip gradients that are still scaled; "
                "set optimizer.fused=false, or trainer.precision=bf16-mixed"
            )
        if self.teacher is not None:
            check_apart(self.teacher, self.student)
        if self.compiles:  # here: weights, batch norms and device are the final ones
            compile_([network for network in (self.student, self.teacher) if network is not None], self.device)

    def on_train_start(self) -> None:
        trainer = self.trainer
        self.step.reset()
        self._check = FiniteCheck()
        batches, accumulate = trainer.num_training_batches, trainer.accumulate_grad_batches
        if batches == float("inf"):
            raise ValueError(
                "Pretrainer needs a training loader of known length, got one without; set limit_train_batches"
            )
        if batches % accumulate:
            raise ValueError(
                f"{batches} batches an epoch are no multiple of trainer.accumulate_grad_batches={accumulate}: the last "
                "optimizer step of an epoch would be scaled wrongly; use ImageDataModule, or cut the loader"
            )
        self.steps_per_epoch = int(batches) // accumulate
        endless = trainer.max_epochs is None or trainer.max_epochs < 0
        self.total_steps = trainer.max_steps if endless else self.steps_per_epoch * int(trainer.max_epochs or 0)
        if self.total_steps <= 0:
            raise ValueError("training without an end has no schedules; set trainer.max_epochs or trainer.max_steps")
        resumed = trainer.global_step > 0  # it knows its place, and was checked when it began
        if self.start_epoch and not resumed:
            stand_at(trainer, self.start_epoch, int(batches), self.steps_per_epoch)
        elif self.counts_anew:
            stand_at(trainer, trainer.current_epoch, int(batches), self.steps_per_epoch)
        self.global_batch = batch_size_of(trainer.train_dataloader) * trainer.world_size * accumulate
        epochs = self.total_steps / self.steps_per_epoch
        if not resumed and not getattr(trainer, "fast_dev_run", False):
            self.check_durations(epochs)
        if (line := self.shortened(epochs)) is not None:
            self.print(line)
        self.print(
            f"global batch {self.global_batch} images ({self.global_batch // trainer.world_size // accumulate} x "
            f"{trainer.world_size} processes x {accumulate} accumulated), {self.steps_per_epoch} steps an epoch, "
            f"{self.total_steps} steps in {epochs:g} epochs, "
            f"peak lr {scaled_lr(self.optimizer.lr, self.global_batch):.4g} ({self.optimizer.lr:g} per 256 images)"
        )
        if not self.optimizer.lr:
            self.print("optimizer.lr=0: nothing is learnt")
        if self.teacher is not None and self.step.momentum == self.step.momentum_end == 1:
            self.print("module.momentum=1: the teacher keeps the weights that it begins with")

    @property
    def durations(self) -> dict[str, Duration]:
        """Parts of the training by the full names of their settings."""
        parts: dict[str, OptimizerRecipe | Objective | PretrainingStep]
        parts = {"optimizer": self.optimizer, "loss": self.objective, "module": self.step}
        named = {f"{key}.{name}": value for key, part in parts.items() for name, value in part.durations.items()}
        warm = self.step.warm_heads_epochs
        return named | ({"init.warm_heads_epochs": Duration(warm, published=0)} if warm else {})

    def shortened(self, epochs: float) -> str | None:
        """A line that says which durations a training of `epochs` epochs cuts short; None if it cuts none."""
        cut = [
            f"{setting}={duration.of(epochs):g} in place of {duration.published:g}"
            for setting, duration in self.durations.items()
            if duration.shrinks(epochs)
        ]
        return f"{epochs:g} epochs are less than {LONG}, so these shrink: {', '.join(cut)}" if cut else None

    def check_durations(self, epochs: float) -> None:
        """Refuse durations that reach beyond a training of `epochs` epochs."""
        for setting, duration in self.durations.items():
            duration.check(setting, epochs)
        if self.start_epoch >= epochs:
            raise ValueError(
                f"start_epoch={self.start_epoch} lies at or after the end of training (trainer.max_epochs={epochs:g}), "
                "which counts from epoch 0; raise trainer.max_epochs"
            )
        self.objective.check(epochs)

    # Weights of an earlier training

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same_architecture(checkpoint, self.student.backbone, self.objective, self.state_dict())
        check_same_optimizer(checkpoint, self.optimizer.name)
        if self._trainer is not None and self.trainer.precision == "64-true":
            self.double()  # Lightning fills the weights before it does so, and would round them to float32
        data = checkpoint.get("ImageDataModule")
        if data is not None and self._trainer is not None:
            recount_batches(checkpoint["loops"], data["accumulate"], self.trainer.accumulate_grad_batches)

    def start_from(self, source: Checkpoint, **how: Any) -> str:
        """Begin with a checkpoint's weights; optimizer and schedules are new.

        Args:
            source: `checkpoints.read_checkpoint(path_or_name)`.
            how: ``network``, ``heads`` and ``resize_positions`` of `checkpoints.init_from.start_from_`.

        Returns:
            One line that says what came from where.
        """
        return start_from_(self.student, self.teacher, self.objective, source, **how)

    def continue_from(self, source: Checkpoint) -> str:
        """Go on with the training of another code's checkpoint: weights, centres, optimizer, epoch.

        Args:
            source: `checkpoints.read_checkpoint(path, moments=True)`.

        Raises:
            ValueError: it is another training: architecture, loss or optimizer differ.
        """
        check_continues(self.student, self.teacher, self.objective, self.optimizer.name, source)
        line = self.start_from(source)
        self.start_epoch, self.moments = source.epoch or 0, source.moments
        return line.replace("init_from=", "ckpt_path=", 1)
