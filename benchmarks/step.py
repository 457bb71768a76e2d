"""One step of a pretraining: the straightforward form and ours, part by part and whole."""

# v views | b images | n regions

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import Comparison, compared, relative_error
from benchmarks.loss import Problem, straightforward
from benchmarks.tokens import with_padding
from esvit_pl.augment.batch import Batch
from esvit_pl.backbones import Backbone
from esvit_pl.backbones.swin import Swin
from esvit_pl.compiling import compile_
from esvit_pl.losses import match_views
from esvit_pl.objectives import EsViTObjective, Losses, Progress, Views
from esvit_pl.optim import OptimizerRecipe, parameter_groups
from esvit_pl.precision import wide
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.profiling.measure import peak_bytes, wait
from esvit_pl.profiling.training import Noise, Training

PARTS = ("teacher", "student", "loss", "backward", "optimizer and teacher's average")


class StraightStep(PretrainingStep):
    """Gradients are clipped parameter by parameter, and the teacher's average goes from parameter to parameter."""

    def before_optimizer(self, progress: Progress) -> None:
        for parameter in self.student.parameters():
            if parameter.grad is not None and self.clip_grad:
                scale = self.clip_grad / (parameter.grad.norm() + 1e-6)
                if scale < 1:
                    parameter.grad.mul_(scale)

    @torch.no_grad()
    def finish(self, progress: Progress) -> Any:
        window, report = self.exchange()
        self.objective.commit(window)
        assert self.teacher is not None
        momentum = self.momentum_at(progress)
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.mul_(momentum).add_((1 - momentum) * theirs)
        return report


class StraightObjective(EsViTObjective):
    """The losses hold all logits and every pair's targets."""

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        losses = Losses({}, self.weights)
        matches = {name: match_views(*views) for name, views in _matchable(student, teacher).items()}
        for name in self.weights:
            center: Any = self.centers[name]
            z, teacher_z = ([_with_regions(wide(part)) for part in views.z[name]] for views in (student, teacher))
            prototypes, targets = wide(student.prototypes[name]), wide(teacher.prototypes[name])
            center.observe(torch.cat([part.flatten(0, 1) for part in teacher_z]), targets)
            temps = (self.spec["student_temp"], self.schedules(progress)["teacher_temp"])
            losses.terms[name] = straightforward(
                Problem(z, prototypes, teacher_z, targets, center.value, matches[name], *temps)
            )
        return losses


class StraightTraining(Training):
    """The optimizer is torch's own choice of kernel, not the fused one."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.step.student), lr=0.0)


def ours(
    backbone: Backbone,
    objective: EsViTObjective,
    *,
    num_global: int = 2,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    compile: bool = False,  # noqa: A002 - the name that configs type
    grad_checkpointing: bool = False,
) -> Training:
    """The training as the package has it. What is given stays as it is."""
    backbone, objective = deepcopy(backbone), deepcopy(objective)
    step = PretrainingStep(backbone, objective, num_global=num_global, grad_checkpointing=grad_checkpointing)
    step.to(device)
    if compile:
        backbone.check_compiles()
        compile_([network for network in (step.student, step.teacher) if network is not None], device)
    return Training(step, OptimizerRecipe(), autocast=autocast)


def straight(
    backbone: Backbone,
    objective: EsViTObjective,
    *,
    num_global: int = 2,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Training:
    """The same training in the straightforward form; a Swin computes its padding, too."""
    backbone, objective = deepcopy(backbone), deepcopy(objective)
    objective.__class__ = StraightObjective
    step = StraightStep(
        with_padding(backbone) if isinstance(backbone, Swin) else backbone, objective, num_global=num_global
    )
    return StraightTraining(step.to(device), OptimizerRecipe(), autocast=autocast)


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
    how: dict[str, Any] = {"num_global": num_global, "device": device, "autocast": torch.bfloat16 if bf16 else None}
    forms = (partial(straight, **how), partial(ours, **{**how, **switches}))

    def make(form: Callable[..., Training]) -> tuple[Training, Batch]:
        torch.manual_seed(0)
        training = form(backbone, objective)
        return training, Noise(training.step, sides, batch_size).batch(device)

    def two_steps(form: Callable[..., Training]) -> None:
        training, batch = make(form)
        for _ in range(2):  # the first one makes the optimizer's moments
            training(batch)

    pair = [make(form) for form in forms]
    wanted, mine = (gradients(training, batch) for training, batch in pair)
    error = relative_error(mine, wanted)
    clocks = [Clock(training, device) for training, _ in pair]
    for _ in range(1 + repeats):
        for training, batch in pair:
            training(batch)
    theirs, our = (clock.steps()[1:] for clock in clocks)
    del pair, training, batch
    for part in PARTS:
        yield compared(part, [(one[part], two[part]) for one, two in zip(theirs, our, strict=True)])
    held = [peak_bytes(partial(two_steps, form), device) for form in forms]
    whole = [(sum(one.values()), sum(two.values())) for one, two in zip(theirs, our, strict=True)]
    yield compared("whole step", whole, held, error)


def gradients(training: Training, batch: Batch) -> list[Tensor]:
    """The loss and the gradients of one pass, nothing moved; stochastic depth draws the same at every call."""
    loss = training.forward(batch).total
    training.step.reset()
    parameters = [parameter for parameter in training.step.student.parameters() if parameter.requires_grad]
    return [loss.detach(), torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)])]


class Clock:
    """Notes from now on how long the parts of a training take, each until the device is done."""

    def __init__(self, training: Training, device: torch.device | str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        step = training.step
        for part, module in zip(PARTS, (step.teacher, step.student, step.objective), strict=False):
            self.watch(module, part)
        for part, method in zip(PARTS[3:], ("backward", "update"), strict=True):
            setattr(training, method, self.timed(part, getattr(training, method)))

    def steps(self) -> list[dict[str, float]]:
        """Seconds of each part, one dict a step."""
        return [dict(zip(self.seconds, step, strict=True)) for step in zip(*self.seconds.values(), strict=True)]

    def watch(self, module: nn.Module | None, part: str) -> None:
        """Time a module's calls from outside, so that a compiled one stays one graph."""
        clock, kind = self, type(module)

        def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            return clock.timed(part, partial(kind.__call__, self))(*args, **kwargs)

        module.__class__ = type(kind.__name__, (kind,), {"__call__": __call__})

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            wait(self.device)
            start = perf_counter()
            result = function(*args, **kwargs)
            wait(self.device)
            self.seconds[part].append(perf_counter() - start)
            return result

        return run


def _matchable(student: Views, teacher: Views) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """What each head's rows are matched by; with one row for each view there is one choice."""
    pooled = [[view[:, None] for view in views.pooled] for views in (student, teacher)]
    return {"view": (pooled[0], pooled[1]), "region": (student.regions, teacher.regions)}


def _with_regions(z: Tensor) -> Tensor:
    """(b p) -> (b 1 p); (b n p) stays."""
    return z[:, None] if z.ndim == 2 else z
