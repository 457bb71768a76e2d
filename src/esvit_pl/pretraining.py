"""One step of self-supervised training, without a Trainer. Pretrainer, benchmarks and the memory prediction call it.

The paper's algorithm, and where it stands here:

    for each batch of images:
        views = global and local crops of every image                   the data module
        student sees all views, teacher the global ones                 PretrainingStep.forward
        loss = L_V + L_R                                                 the objective, called by forward
        loss.backward(); clip; optimizer.step()                         before_optimizer, and whoever trains
        center <- m center + (1 - m) mean of the teacher's logits       finish
        teacher <- l teacher + (1 - l) student                          finish
"""

# v views | b images | c channels | h, w pixels

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.backbones.interface import Backbone
from esvit_pl.distributed import gather_over_ranks, num_ranks, rank, sum_over_ranks
from esvit_pl.ema import ema_update_, make_teacher
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives.interface import Losses, Objective, Window
from esvit_pl.optim.clipping import clip_each_
from esvit_pl.schedules import Duration, Progress, check_shape, in_steps, scheduled
from esvit_pl.seeding import seed_torch


class Report(NamedTuple):
    """What an optimizer step says of itself, equal on all ranks."""

    measures: dict[str, Tensor]
    """Losses and diagnostics: means over the micro-batches of the step and over ranks."""
    finite: Tensor
    """0-d bool on the device: whether the loss was finite in every micro-batch on every rank."""


class PretrainingStep(nn.Module):
    """A student learns from a momentum teacher, or from its own views, as the objective says.

    A whole training in plain torch (docs/interop.md has one that runs)::

        for progress, batch in ...:
            recipe.set_(optimizer, progress, global_batch=64)
            step(batch, progress).total.backward()
            step.before_optimizer(progress)
            optimizer.step()
            optimizer.zero_grad()
            step.finish(progress)

    With gradient accumulation `forward` runs once for each micro-batch, and the rest once for each optimizer step.

    Args:
        backbone: the student's; the teacher's is a copy of it without stochastic depth.
        objective: what is learnt.
        momentum: of the teacher at the start.
        momentum_end: momentum towards which the schedule goes over the whole training.
        momentum_schedule: its shape, a name in `schedules.SHAPES`.
        clip_grad: largest norm of a gradient; 0 or None leaves gradients alone.
        clip_grad_of: "parameter" clips each parameter's gradient by its own norm, "network" all by their common norm.
        freeze_prototypes_epochs: the student's prototypes stand still for so many epochs; may be a fraction. None for
            1, and for a hundredth of a training of less than 100 epochs.
        warm_heads_epochs: the student's backbone stands still for so many epochs, while its heads learn; may be a
            fraction. For a backbone that has learnt before.
        num_global: the first so many views are global ones, which the teacher sees.
        seed: of the randomness inside the step (stochastic depth).
        grad_checkpointing: backward computes the student's blocks again instead of keeping them; exact.

    Attributes:
        student, teacher: `MultiCropNetwork`; the teacher is None where the objective has none.
        objective: as given.
        outputs: what callbacks may read of the last micro-batch: "embedding" (b d) of the first view and "regions"
            (b n c) of the global views, the teacher's if there is one, "label" and "diagnostics".

    Raises:
        ValueError: a number out of its range.

    >>> from esvit_pl.backbones import build
    >>> from esvit_pl.objectives import EsViTObjective
    >>> swin = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    >>> step = PretrainingStep(swin, EsViTObjective(num_prototypes=8, hidden_dim=8, out_dim=4))
    >>> losses = step({"views": [torch.randn(2, 3, 32, 32) for _ in range(3)]}, Progress(step=0, total=10))
    >>> sorted(losses.terms)
    ['region', 'view']
    """

    teacher: MultiCropNetwork | None

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        *,
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        momentum_schedule: str = "cosine",
        clip_grad: float | None = 3.0,
        clip_grad_of: Literal["parameter", "network"] = "parameter",
        freeze_prototypes_epochs: float | None = None,
        warm_heads_epochs: float = 0.0,
        num_global: int = 2,
        seed: int = 0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("momentum", momentum), ("momentum_end", momentum_end)):
            if not 0 <= value <= 1:
                raise ValueError(f"the teacher needs {name} between 0 and 1, got {value}")
        for name, given in (
            ("clip_grad", clip_grad),
            ("freeze_prototypes_epochs", freeze_prototypes_epochs),
            ("warm_heads_epochs", warm_heads_epochs),
        ):
            if (given or 0) < 0:
                raise ValueError(f"the training step needs {name} of 0 or more, got {given}")
        if clip_grad_of not in ("parameter", "network"):
            raise ValueError(f"the training step needs clip_grad_of 'parameter' or 'network', got {clip_grad_of!r}")
        check_shape("module.momentum_schedule", momentum_schedule)
        objective.prepare(backbone)
        heads, rows = objective.heads(backbone.width, backbone.region_width), objective.head_rows
        self.teacher = None
        if objective.uses_teacher:
            self.teacher = MultiCropNetwork(make_teacher(backbone), make_teacher(heads), head_rows=rows)
        if grad_checkpointing:  # of the student alone: no backward goes through the teacher
            backbone.set_grad_checkpointing()
        if objective.uses_masks:
            backbone.learn_mask()
        heads.update(dict(objective.student_only_heads().items()))
        self.student = MultiCropNetwork(backbone, heads, head_rows=rows)
        self.objective = objective
        self.momentum, self.momentum_end, self.momentum_schedule = momentum, momentum_end, momentum_schedule
        self.clip_grad, self.clip_grad_of = clip_grad, clip_grad_of
        self.durations = {"freeze_prototypes_epochs": Duration(freeze_prototypes_epochs, published=1)}
        self.warm_heads_epochs = warm_heads_epochs
        self.num_global = num_global
        self.seed = seed
        self.outputs: dict[str, Any] = {}
        self._seen: list[Losses] = []
        self._gradients_checked = False

    @property
    def encoder(self) -> Backbone:
        """What is evaluated, exported and watched: the teacher's backbone, without a teacher the student's."""
        return (self.teacher or self.student).backbone

    def forward(self, batch: Batch, progress: Progress) -> Losses:
        """The losses of a micro-batch; ``.total`` is what to minimise.

        Args:
            batch: `augment.Batch`; "views" is needed.
            progress: where training stands; ``progress.micro_batch`` seeds stochastic depth.
        """
        seed_torch(self.seed, "step", progress.micro_batch, rank())  # so that a resumed training draws the same numbers
        views = batch["views"]  # list of (b c h w), global ones first
        if self.objective.uses_masks and batch.get("masks") is None:
            raise ValueError(
                f"{type(self.objective).__name__} needs masks, and the batch has none; set augment.mask_cell"
            )
        seen, masks = self.objective.student_sees(batch, progress)  # masks: for each view (b h w) bool, or None
        heads = self.objective.active(progress)

        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(views[: self.num_global], heads)
        student = self.student(seen, heads, masks)
        losses: Losses = self.objective(student, teacher, batch, progress)

        losses.idle = sum((0.0 * p.sum() for p in self.waiting(progress)), losses.idle)
        self._seen.append(losses.detach())
        shown = teacher or student
        self.outputs = {
            "embedding": shown.pooled[0].detach(),
            "regions": torch.cat(shown.regions[: self.num_global]).detach(),
            "label": batch.get("label"),
            "diagnostics": losses.diagnostics,
        }
        return losses

    def before_optimizer(self, progress: Progress) -> None:
        """Between backward and the optimizer: what stands still loses its gradient, the other gradients are clipped.

        Raises:
            ValueError: in the first step, for parameters that got no gradient: they would stay at their initial values
                without a word.
        """
        if not self._gradients_checked:
            check_gradients(self.student)
            self._gradients_checked = True
        for parameter in [*self.waiting(progress), *self.frozen(progress)]:
            parameter.grad = None  # a zero gradient would still decay, and build up optimizer state
        if self.clip_grad:
            clip = clip_each_ if self.clip_grad_of == "parameter" else nn.utils.clip_grad_norm_
            clip(self.student.parameters(), self.clip_grad)

    @torch.no_grad()
    def finish(self, progress: Progress) -> Report:
        """After the optimizer: ranks add up what they saw, the objective moves what it remembers, the teacher follows.

        Args:
            progress: that of `forward`.
        """
        window, report = self.exchange()
        self.objective.commit(window)
        if self.teacher is not None:
            ema_update_(self.teacher, self.student, self.momentum_at(progress))
        return report

    def exchange(self) -> tuple[Window, Report]:
        """What ranks tell one another in an optimizer step, beside gradients: one sum, and a gather for each queue."""
        seen, self._seen = self._seen, []
        collected = self.objective.collect()
        measures = torch.stack([losses.values for losses in seen]).sum(0)
        nonfinite = torch.stack([~torch.isfinite(losses.total) for losses in seen]).any().view(1)
        parts = [measures[:0] if collected.sum is None else collected.sum, measures, nonfinite.to(measures.dtype)]
        total, measures, nonfinite = sum_over_ranks(torch.cat(parts)).split([len(part) for part in parts])
        means = measures / (len(seen) * num_ranks())
        gathered = {name: in_order(rows, micro_batches=len(seen)) for name, rows in collected.gather.items()}
        report = Report(dict(zip(seen[0].names, means, strict=True)), nonfinite[0] == 0)
        return Window(None if collected.sum is None else total, gathered), report

    def reset(self) -> None:
        """Forget the micro-batches of an optimizer step that was interrupted."""
        self._seen, self.outputs = [], {}
        self.objective.reset()

    def momentum_at(self, progress: Progress) -> float:
        """The teacher's momentum in this step."""
        start, end = self.momentum, self.momentum_end
        step = min(progress.step + self.objective.momentum_of_next_step, progress.total)
        return scheduled(self.momentum_schedule, step, progress.total, start=start, end=end)

    def waiting(self, progress: Progress) -> list[nn.Parameter]:
        """Parameters of the heads that take no part yet."""
        heads = self.objective.active(progress)
        if heads is None:
            return []
        waiting = [head for name, head in self.student.heads.items() if name not in heads]
        return [p for head in waiting for p in head.parameters() if p.requires_grad]

    def frozen(self, progress: Progress) -> list[nn.Parameter]:
        """The student's backbone and its prototypes, each in the epochs in which it stands still."""
        warm = progress.step < in_steps(self.warm_heads_epochs, progress.steps_per_epoch)
        backbone = list(self.student.backbone.parameters()) if warm else []
        epochs = self.durations["freeze_prototypes_epochs"].of(progress.epochs)
        if progress.step >= in_steps(epochs, progress.steps_per_epoch):
            return backbone
        prototypes = [getattr(head, "prototypes", None) for head in self.student.heads.values()]
        return backbone + [p for module in prototypes if module is not None for p in module.parameters()]


def check_gradients(student: nn.Module) -> None:
    """Name every trainable parameter that a backward pass left without a gradient.

    Raises:
        ValueError: there are such parameters.
    """
    lost = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    if lost:
        raise ValueError(
            f"{len(lost)} trainable parameters of the student got no gradient in the first step: {', '.join(lost)}; "
            "set requires_grad=False on what is not meant to learn, or let the loss use it"
        )


def in_order(rows: Tensor, *, micro_batches: int) -> Tensor:
    """This rank's rows of an optimizer step (n ...) -> those of all ranks, in the order in which one process would have
    seen the images: micro-batch by micro-batch, and rank by rank within each."""
    gathered = gather_over_ranks(rows)
    by_rank: Tensor = gathered.unflatten(0, (num_ranks(), micro_batches, -1))
    return by_rank.transpose(0, 1).flatten(0, 2)
