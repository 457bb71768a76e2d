"""One step of a pretraining: the straightforward form and ours, part by part and whole."""

# v views | b images | n regions

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from esvit_pl.backbones import Backbone
from esvit_pl.backbones.swin import Swin
from esvit_pl.benchmarks.loss import Problem, straightforward
from esvit_pl.benchmarks.tokens import with_padding
from esvit_pl.compiling import compile_
from esvit_pl.ema import ema_update_, make_teacher
from esvit_pl.losses import match_views
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import EsViTObjective, Losses, Progress, Views
from esvit_pl.optim import OptimizerRecipe, clip_each_, parameter_groups
from esvit_pl.precision import wide
from esvit_pl.profiling.measure import Comparison, compared, peak_bytes, relative_error, wait

PARTS = ("teacher", "student", "loss", "backward", "optimizer and teacher's average")
CLIP, MOMENTUM, LR = 3.0, 0.996, 1e-4
START = Progress(0, 1)


Timed = Callable[[str, Callable[[], Any]], Any]


def _untimed(part: str, run: Callable[[], Any]) -> Any:
    return run()


class Step:
    """A training step as `modules.Pretrainer` takes it, without a Trainer round it. It owns what it is given.

    Args:
        backbone: the student's.
        objective: without heads that wait.
        views: (b c h w) each, global ones first.
        num_global: so many views are the teacher's, too.
        bf16: networks run in bfloat16 where autocast lets them.
        compile: as `modules.Pretrainer` has it.
        grad_checkpointing: the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: EsViTObjective,
        views: list[Tensor],
        *,
        num_global: int = 2,
        bf16: bool = False,
        compile: bool = False,  # noqa: A002 - the name that configs type
        grad_checkpointing: bool = False,
    ) -> None:
        self.views, self.num_global = views, num_global
        self.device = views[0].device
        heads = objective.heads(backbone.width, backbone.region_width)
        self.objective = objective.to(self.device)
        self.student = MultiCropNetwork(backbone, heads).to(self.device)
        if grad_checkpointing:
            backbone.set_grad_checkpointing()
        self.teacher = make_teacher(self.student)
        if compile:
            backbone.check_compiles()
            compile_([self.student, self.teacher], self.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        self.optimizer = self.make_optimizer()
        for group in self.optimizer.param_groups:
            group["lr"] = LR

    def __call__(self, timed: Timed = _untimed) -> Tensor:
        """The loss; `timed` runs every part."""
        loss = self.forward(timed)
        timed(PARTS[3], loss.backward)
        timed(PARTS[4], self.finish)
        return loss.detach()

    def forward(self, timed: Timed = _untimed) -> Tensor:
        with self.autocast:
            with torch.no_grad():
                target = timed(PARTS[0], lambda: self.teacher(self.views[: self.num_global]))
            seen = timed(PARTS[1], lambda: self.student(self.views))
            losses: Losses = timed(PARTS[2], lambda: self.losses(seen, target))
            return losses.total

    def gradients(self) -> list[Tensor]:
        """The loss and the gradients of one pass, nothing moved; stochastic depth draws the same at every call."""
        torch.manual_seed(1)
        loss = self.forward()
        self.objective.reset()
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return [loss.detach(), torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)])]

    def make_optimizer(self) -> torch.optim.Optimizer:
        return OptimizerRecipe().build(parameter_groups(self.student))

    def losses(self, student: Views, teacher: Views) -> Losses:
        return self.objective(student, teacher, {}, START)

    def finish(self) -> None:
        """Everything after the backward pass."""
        clip_each_(self.student.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.commit(self.objective.collect())
        ema_update_(self.teacher, self.student, MOMENTUM)


class StraightStep(Step):
    """The same step in the straightforward form: Swin computes its padding, the losses hold all logits and every pair's
    targets, and clipping, optimizer and average go from parameter to parameter."""

    def __init__(self, backbone: Backbone, objective: EsViTObjective, views: list[Tensor], **how: Any) -> None:
        super().__init__(with_padding(backbone) if isinstance(backbone, Swin) else backbone, objective, views, **how)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.student), lr=0.0)

    def losses(self, student: Views, teacher: Views) -> Losses:
        objective, losses = self.objective, Losses({}, self.objective.weights)
        matches = {name: match_views(*views) for name, views in _matchable(student, teacher).items()}
        for name in objective.weights:
            center: Any = objective.centers[name]
            z, teacher_z = ([_with_regions(wide(part)) for part in views.z[name]] for views in (student, teacher))
            prototypes, targets = wide(student.prototypes[name]), wide(teacher.prototypes[name])
            center.observe(torch.cat([part.flatten(0, 1) for part in teacher_z]), targets)
            temps = (objective.spec["student_temp"], objective.schedules(START)["teacher_temp"])
            losses.terms[name] = straightforward(
                Problem(z, prototypes, teacher_z, targets, center.value, matches[name], *temps)
            )
        return losses

    def finish(self) -> None:
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                scale = CLIP / (parameter.grad.norm() + 1e-6)
                if scale < 1:
                    parameter.grad.mul_(scale)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.commit(self.objective.collect())
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.mul_(MOMENTUM).add_((1 - MOMENTUM) * theirs)


def step_costs(
    backbone: Backbone,
    objective: EsViTObjective,
    *,
    batch_size: int = 4,
    sides: tuple[int, ...] = (224,) * 2 + (96,) * 8,
    num_global: int = 2,
    repeats: int = 3,
    device: str = "cpu",
    bf16: bool = False,
    **switches: bool,
) -> Iterator[Comparison]:
    """Every part of the step in both forms, then the whole with its memory and its error.

    Memory counts from an empty machine: weights, moments and views too. The error is that of the loss and of all
    gradients.

    Args:
        backbone: the student's; stays as it is.
        objective: the same.
        batch_size: images.
        sides: of the views in pixels, global ones first.
        num_global: so many views are the teacher's, too.
        repeats: steps of each form, in turn, after one to warm up.
        device: where.
        bf16: networks run in bfloat16 where autocast lets them.
        switches: ``compile`` and ``grad_checkpointing`` of our form, as `modules.Pretrainer` has them.
    """

    def make(kind: type[Step]) -> Step:
        torch.manual_seed(0)
        views = [torch.randn(batch_size, backbone.spec["in_chans"], side, side, device=device) for side in sides]
        how = {} if kind is StraightStep else switches
        return kind(deepcopy(backbone), deepcopy(objective), views, num_global=num_global, bf16=bf16, **how)

    def twice(kind: type[Step]) -> None:
        step = make(kind)
        for _ in range(2):  # the first one makes the optimizer's moments
            step()

    straight, ours = make(StraightStep), make(Step)
    error = relative_error(ours.gradients(), straight.gradients())
    for form in (straight, ours):
        form()
    clocks = [(_Clock(device), _Clock(device)) for _ in range(repeats)]
    for theirs, mine in clocks:
        straight(theirs)
        ours(mine)
    for part in PARTS:
        yield compared(part, [(one.seconds[part], two.seconds[part]) for one, two in clocks])
    del straight, ours, form
    held = [peak_bytes(partial(twice, kind), device) for kind in (StraightStep, Step)]
    whole = [(sum(one.seconds.values()), sum(two.seconds.values())) for one, two in clocks]
    yield compared("whole step", whole, held, error)


class _Clock:
    """Seconds of each part that it runs."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, run: Callable[[], Any]) -> Any:
        wait(self.device)
        start = perf_counter()
        result = run()
        wait(self.device)
        self.seconds[part] = perf_counter() - start
        return result


def _matchable(student: Views, teacher: Views) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """What each head's rows are matched by; with one row for each view there is one choice."""
    pooled = [[view[:, None] for view in views.pooled] for views in (student, teacher)]
    return {"view": (pooled[0], pooled[1]), "region": (student.regions, teacher.regions)}


def _with_regions(z: Tensor) -> Tensor:
    """(b p) -> (b 1 p); (b n p) stays."""
    return z[:, None] if z.ndim == 2 else z
