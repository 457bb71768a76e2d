"""Self-supervised pretraining: a student learns from a momentum teacher."""

# v views | b images | c channels

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from esvit_pl.backbones.interface import Backbone
from esvit_pl.checkpoints.source import Moments, Source
from esvit_pl.checkpoints.start import check_continues, start_from_
from esvit_pl.checkpoints.training import check_same_architecture, describe
from esvit_pl.compiling import compile_
from esvit_pl.data import batch_size_of
from esvit_pl.distributed import sum_over_ranks
from esvit_pl.ema import check_apart, ema_update_, make_teacher
from esvit_pl.guard import LateFlag
from esvit_pl.heads import Prototypes
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views
from esvit_pl.optim import (
    OptimizerRecipe,
    can_skip,
    clip_each_,
    parameter_groups,
    restore_,
    scaled_lr,
    skip_nothing_,
    skip_where_,
)
from esvit_pl.schedules import cosine, in_steps
from esvit_pl.seeding import seed_torch


class NonFiniteLoss(RuntimeError):
    """The loss was infinite or not a number; the step that found it changed nothing."""


class Pretrainer(LightningModule):
    """EsViT's training (docs/recipes.md), or that of another objective. Its parts arrive built.

    Args:
        backbone: the student's; the teacher's is a copy of it without stochastic depth.
        objective: what is learnt.
        optimizer: which optimizer, and its learning rate and weight decay over time.
        momentum: of the teacher at the start.
        momentum_end: the same at the end of a cosine over the whole training.
        clip_grad: largest norm of each parameter's own gradient; 0 or None leaves gradients alone.
        freeze_prototypes_epochs: the student's prototypes stand still for so many epochs; may be a fraction.
        num_global: the first so many views are global ones, and the teacher's.
        seed: of the randomness inside the step (stochastic depth).
        start_epoch: a new training stands here in all its schedules, as if so many epochs lay behind it; for one that
            starts from weights of an earlier training (`start_from`).
        compile: let torch compile student and teacher, each into one graph for the crops of a batch; minutes at the
            start, equal up to rounding.
        grad_checkpointing: the student's blocks are computed again in backward instead of being kept; exact.
        config: plain dict that is kept in the checkpoints.

    Logs ``train/<term>_loss``, the objective's diagnostics and every schedule as ``train/...``.

    Raises:
        NonFiniteLoss: on every rank, with nothing of that step moved: at once, or, where the optimizer can skip a step
            by a flag on the device (`optim.can_skip`), in the next step, at the end of the epoch or before a
            checkpoint, whichever comes first.
        ValueError: settings that do not fit together, at the start of the fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        optimizer: OptimizerRecipe,
        *,
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        clip_grad: float | None = 3.0,
        freeze_prototypes_epochs: float = 1,
        num_global: int = 2,
        seed: int = 0,
        start_epoch: int = 0,
        compile: bool = False,  # noqa: A002 - the name that configs type
        grad_checkpointing: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("momentum", momentum), ("momentum_end", momentum_end)):
            if not 0 <= value <= 1:
                raise ValueError(f"Pretrainer needs {name} between 0 and 1, got {value}")
        for name, value in (("clip_grad", clip_grad or 0), ("freeze_prototypes_epochs", freeze_prototypes_epochs)):
            if value < 0:
                raise ValueError(f"Pretrainer needs {name} of 0 or more, got {value}")
        if start_epoch < 0:
            raise ValueError(f"Pretrainer needs start_epoch of 0 or later, got {start_epoch}")
        if compile:
            backbone.check_compiles()
        heads = objective.heads(backbone.width, backbone.region_width)
        self.teacher = MultiCropNetwork(make_teacher(backbone), make_teacher(heads)) if objective.uses_teacher else None
        if grad_checkpointing:  # of the student alone: no backward goes through the teacher
            backbone.set_grad_checkpointing()
        heads.update(dict(objective.student_only_heads().items()))
        self.student = MultiCropNetwork(backbone, heads)
        self.objective = objective
        self.optimizer = optimizer
        self.momentum, self.momentum_end = momentum, momentum_end
        self.clip_grad = clip_grad
        self.freeze_prototypes_epochs = freeze_prototypes_epochs
        self.num_global = num_global
        self.seed = seed
        self.start_epoch = start_epoch
        self.compiles = compile
        self.moments: Moments | None = None
        self.config = config
        self.steps_per_epoch = self.total_steps = self.global_batch = 0
        self._seen: list[Losses] = []
        self._window: Tensor | None = None
        self._finite: Tensor | None = None
        self._late: tuple[LateFlag, int, int] | None = None
        self._gradients_checked = False

    # The step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        views = batch["views"]  # list of (b c h w), global views first
        progress = self.progress
        heads = self.objective.active(progress)
        teacher, student = self.teach(views[: self.num_global], heads), self.student(views, heads)
        losses = self.objective(student, teacher, progress)
        self._seen.append(losses.detach())
        return {
            "loss": losses.total + self.idle(heads),
            "embedding": (teacher or student).pooled[0].detach(),
            "regions": torch.cat((teacher or student).regions[: self.num_global]).detach(),
            "label": batch.get("label"),
            "diagnostics": losses.diagnostics,
        }

    @torch.no_grad()
    def teach(self, views: list[Tensor], heads: set[str]) -> Views | None:
        """The teacher's view of the global crops, if the objective has a teacher."""
        return None if self.teacher is None else self.teacher(views, heads)

    def idle(self, heads: set[str]) -> Tensor | float:
        """Zero times the parameters of the heads that take no part yet, so that DDP finds them used."""
        return sum((0.0 * p.sum() for p in self._idle_parameters(heads)), 0.0)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        progress = self.progress
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(progress)
            group["weight_decay"] = self.weight_decay_at(progress) if group["name"] == "decay" else 0.0
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            skip_nothing_(getattr(optimizer, "optimizer", optimizer))  # out of Lightning's wrapper
        self.objective.commit(self._window, self._finite)
        if self.teacher is not None:
            ema_update_(self.teacher, self.student, self.momentum_at(progress), when=self._finite)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        progress = self.progress
        self.stop_if_nonfinite(self._late)  # not earlier in the step: by now the GPU is busy with this one
        measures, nonfinite = self.gather_window()
        self.guard(optimizer, nonfinite)
        self.log_step(measures, progress)
        if not self._gradients_checked:
            self.check_gradients()
        for parameter in self._standing_still(progress):
            parameter.grad = None  # a zero gradient would still decay, and build up optimizer state
        if self.clip_grad:
            clip_each_(self.student.parameters(), self.clip_grad)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # A function of where training stands, so that a resumed run draws what the uninterrupted one would have drawn.
        micro_batch = self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        seed_torch(self.seed, "step", micro_batch, self.trainer.global_rank)

    # What ranks tell one another

    def gather_window(self) -> tuple[dict[str, Tensor], Tensor]:
        """The one sum over ranks of an optimizer step, beside the gradients': what the objective commits, the losses
        and diagnostics for the log, and whether any loss was not finite.

        Returns:
            {name: mean over the micro-batches of this step and over ranks} of losses and diagnostics; 0-d bool, True
            where a loss was not finite in any micro-batch on any rank.
        """
        seen, self._seen = self._seen, []
        measures = torch.stack([losses.values for losses in seen]).sum(0)
        nonfinite = torch.stack([~torch.isfinite(losses.total) for losses in seen]).any().view(1)
        window = self.objective.window()
        parts = [measures[:0] if window is None else window, measures, nonfinite.to(measures.dtype)]
        self._window, measures, nonfinite = sum_over_ranks(torch.cat(parts)).split([len(part) for part in parts])
        means = measures / (len(seen) * self.trainer.world_size)
        return dict(zip(seen[0].names, means, strict=True)), nonfinite[0] > 0

    # What a loss that is not finite does

    def guard(self, optimizer: Optimizer, nonfinite: Tensor) -> None:
        """Let this step move nothing where its loss is not finite.

        The host waits for the flag only if the optimizer cannot skip a step by it, on a CPU, where waiting costs
        nothing (unless ``optimizer.fused`` asks for it), and under a loss scale, whose own check waits already.

        Args:
            nonfinite: 0-d bool, equal on all ranks.
        """
        late = LateFlag(nonfinite), self.trainer.global_step, self.trainer.current_epoch
        if can_skip(optimizer) and (nonfinite.is_cuda or self.optimizer.fused) and not self._scaled:
            self._late, self._finite = late, ~nonfinite
            skip_where_(optimizer, nonfinite)
        else:
            self.stop_if_nonfinite(late)

    def stop_if_nonfinite(self, late: tuple[LateFlag, int, int] | None) -> None:
        """
        Args:
            late: a step's flag, the step and its epoch; stays, so that nothing is saved after the error either.

        Raises:
            NonFiniteLoss: that step's loss was not finite.
        """
        if late is None or not late[0].read():
            return
        self._seen = []
        self.objective.reset()
        raise NonFiniteLoss(
            f"the loss is not finite at optimizer step {late[1]} (epoch {late[2]}); "
            "weights, centres and teacher are as before that step. Resume from the last checkpoint (ckpt_path=...) "
            "with a lower optimizer.lr or a smaller module.clip_grad, or with trainer.precision=32"
        )

    def on_train_epoch_end(self) -> None:
        self.stop_if_nonfinite(self._late)  # after most callbacks, and before those that save

    def on_train_end(self) -> None:
        self.stop_if_nonfinite(self._late)

    def check_gradients(self) -> None:
        """Name every trainable parameter that the first backward pass left without a gradient.

        Raises:
            ValueError: a part of the student takes no part in the loss, and would stay at its initial values unnoticed.
        """
        lost = [name for name, p in self.student.named_parameters() if p.requires_grad and p.grad is None]
        if lost:
            raise ValueError(
                f"{len(lost)} trainable parameters of the student got no gradient in the first step: "
                f"{', '.join(lost)}; "
                "set requires_grad=False on what is not meant to learn, or let the loss use it"
            )
        self._gradients_checked = True

    # What moves, as closed forms of the optimizer step

    @property
    def progress(self) -> Progress:
        step = self.trainer.global_step
        return Progress(step // self.steps_per_epoch, step, self.total_steps)

    def lr_at(self, progress: Progress) -> float:
        warmup = min(in_steps(self.optimizer.warmup_epochs, self.steps_per_epoch), progress.total)
        return self.optimizer.lr_at(progress.step, progress.total, warmup=warmup, global_batch=self.global_batch)

    def weight_decay_at(self, progress: Progress) -> float:
        return self.optimizer.weight_decay_at(progress.step, progress.total)

    def momentum_at(self, progress: Progress) -> float:
        return cosine(progress.step, progress.total, start=self.momentum, end=self.momentum_end)

    def log_step(self, measures: dict[str, Tensor], progress: Progress) -> None:
        values: dict[str, Any] = {
            **measures,
            "lr": self.lr_at(progress),
            "weight_decay": self.weight_decay_at(progress),
            "teacher_momentum": self.momentum_at(progress),
            **self.objective.schedules(progress),
        }
        for name, value in values.items():
            if not isinstance(value, Tensor):
                # Lightning would copy the number to the GPU, and wait until all that was asked for before is done.
                dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
                value = torch.full((), value, dtype=dtype, device=self.device)
            self.log(f"train/{name}", value, prog_bar=name.endswith("_loss"), batch_size=self.global_batch)

    # Weights of an earlier training

    def start_from(self, source: Source, **how: Any) -> str:
        """Begin with a checkpoint's weights; optimizer and schedules are new.

        Args:
            source: `checkpoints.read_source(path_or_name)`.
            how: ``network``, ``heads`` and ``resize_positions`` of `checkpoints.start.start_from_`.

        Returns:
            One line that says what came from where.
        """
        return start_from_(self.student, self.teacher, self.objective, source, **how)

    def continue_from(self, source: Source) -> str:
        """Go on with the training of another code's checkpoint: weights, centres, optimizer, epoch.

        Args:
            source: `checkpoints.read_source(path, moments=True)`.

        Raises:
            ValueError: it is another training: architecture, loss or optimizer differ.
        """
        check_continues(self.student, self.teacher, self.objective, self.optimizer.name, source)
        line = self.start_from(source)
        self.start_epoch, self.moments = source.epoch or 0, source.moments
        return line.replace("init_from=", "ckpt_path=", 1)

    # Around the fit

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.optimizer.build(parameter_groups(self.student), scaled=self._scaled)
        if self.moments is not None:
            restore_(optimizer, dict(self.student.named_parameters(remove_duplicate=False)), self.moments.of)
        return optimizer

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
        self._late = self._finite = None  # of an earlier fit
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
        if self.start_epoch and not trainer.global_step:  # a resumed training knows its place
            stand_at(trainer, self.start_epoch, int(batches), self.steps_per_epoch)
        self.global_batch = batch_size_of(trainer.train_dataloader) * trainer.world_size * accumulate
        epochs = self.total_steps / self.steps_per_epoch
        if not getattr(trainer, "fast_dev_run", False):
            self.check_durations(epochs)
        self.print(
            f"global batch {self.global_batch} images ({self.global_batch // trainer.world_size // accumulate} x "
            f"{trainer.world_size} processes x {accumulate} accumulated), {self.steps_per_epoch} steps an epoch, "
            f"{self.total_steps} steps in {epochs:g} epochs, "
            f"peak lr {scaled_lr(self.optimizer.lr, self.global_batch):.4g} ({self.optimizer.lr:g} per 256 images)"
        )

    def check_durations(self, epochs: float) -> None:
        """Refuse durations that reach beyond a training of `epochs` epochs."""
        if self.optimizer.warmup_epochs > epochs:
            raise ValueError(
                f"optimizer.warmup_epochs={self.optimizer.warmup_epochs:g} is longer than training "
                f"(trainer.max_epochs={epochs:g}); shorten the warm-up or train longer"
            )
        if self.start_epoch >= epochs:
            raise ValueError(
                f"start_epoch={self.start_epoch} lies at or after the end of training (trainer.max_epochs={epochs:g}), "
                "which counts from epoch 0; raise trainer.max_epochs"
            )
        self.objective.check(epochs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stop_if_nonfinite(self._late)
        checkpoint["esvit_pl"] = describe(self.student.backbone, self.objective, self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same_architecture(checkpoint, self.student.backbone, self.objective, self.state_dict())

    @property
    def _scaled(self) -> bool:
        """Whether the loss is scaled (precision 16-mixed)."""
        return getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None) is not None

    def _idle_parameters(self, heads: set[str]) -> list[torch.nn.Parameter]:
        return [
            p
            for name, head in self.student.heads.items()
            if name not in heads
            for p in head.parameters()
            if p.requires_grad
        ]

    def _standing_still(self, progress: Progress) -> list[torch.nn.Parameter]:
        """Parameters that this step must not move: waiting heads, and the prototypes at the beginning."""
        still = self._idle_parameters(self.objective.active(progress))
        if progress.step < in_steps(self.freeze_prototypes_epochs, self.steps_per_epoch):
            prototypes = [module for module in self.student.heads.modules() if isinstance(module, Prototypes)]
            still += [p for module in prototypes for p in module.parameters()]
        return still


def stand_at(trainer: Trainer, epoch: int, batches: int, steps: int) -> None:
    """Let a Trainer that has not begun count as if `epoch` epochs of so many batches and optimizer steps were done."""
    fit, inner = trainer.fit_loop, trainer.fit_loop.epoch_loop
    optimizer = inner.automatic_optimization.optim_progress.optimizer
    counts = [
        (epoch, (fit.epoch_progress.total, fit.epoch_progress.current)),
        (epoch * batches, (inner.batch_progress.total,)),
        (epoch * steps, (optimizer.step.total, optimizer.zero_grad.total)),
    ]
    for count, trackers in counts:
        for tracker in trackers:
            for name in ("ready", "started", "processed", "completed"):
                if getattr(tracker, name, None) is not None:
                    setattr(tracker, name, count)
    inner._batches_that_stepped = epoch * steps  # the step that loggers see
