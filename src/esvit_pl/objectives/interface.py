"""What an objective is: the heads it needs, the loss it takes of two networks' views, and what it remembers."""

# b images | n regions | d, c channels | p projection width | k prototypes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.backbones.interface import Backbone
from esvit_pl.schedules import Duration, Progress

__all__ = ["Losses", "Objective", "Progress", "Views", "Window"]


@dataclass
class Views:
    """What one network sees in all its views of a batch: lists over views, global ones first.

    >>> Views(pooled=[torch.zeros(2, 8)], regions=[torch.zeros(2, 4, 8)], grids=[(2, 2)]).z
    {}
    """

    pooled: list[Tensor]
    """(b d) each."""
    regions: list[Tensor]
    """(b n c) each; n differs between sizes."""
    grids: list[tuple[int, int]]
    """(h, w) each, h * w = n."""
    z: dict[str, list[Tensor]] = field(default_factory=dict)
    """Name of a head -> what it makes of each view: (b ...) or (b n ...), by what it reads."""
    prototypes: dict[str, Tensor] = field(default_factory=dict)
    """Name of a head -> (k p), for heads that have prototypes."""


@dataclass
class Losses:
    """Terms of the loss, and what they say of the network's health.

    >>> Losses({"view": torch.tensor(2.0), "region": torch.tensor(4.0)}, {"view": 0.5, "region": 0.5}).total
    tensor(3.)
    """

    terms: dict[str, Tensor]
    """Name -> scalar, unweighted."""
    weights: dict[str, float]
    """Name -> its weight in the total."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Name -> detached scalar."""
    idle: Tensor | float = 0.0
    """Zero times the parameters of the heads that wait, so that DDP finds a gradient for them."""

    @property
    def total(self) -> Tensor:
        """The scalar to minimise."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum() + self.idle

    @property
    def names(self) -> list[str]:
        """What `values` are called in logs: ``<term>_loss``, then the diagnostics."""
        return [*(f"{name}_loss" for name in self.terms), *self.diagnostics]

    @property
    def values(self) -> Tensor:
        """(names,): terms and diagnostics, in the widest of their types."""
        values = [*self.terms.values(), *self.diagnostics.values()]
        dtype = reduce(torch.promote_types, (value.dtype for value in values))
        return torch.stack([value.to(dtype) for value in values])

    def detach(self) -> Losses:
        """The same without a graph."""
        return replace(self, terms={name: term.detach() for name, term in self.terms.items()}, idle=0.0)


class Window(NamedTuple):
    """What an objective has collected in an optimizer step, for `Objective.commit`.

    `Objective.collect` gives this rank's part; `Objective.commit` takes that of all ranks.
    """

    sum: Tensor | None = None
    """(any,): is summed over ranks (the sums behind a centre)."""
    gather: Mapping[str, Tensor] = {}
    """Name -> (n ...), one row for each image of the step on this rank: is gathered over ranks, in the order in which
    one process would have seen the images (the keys of a queue)."""


class Objective(nn.Module):
    """Base class of all objectives; chosen by the config group ``loss``. docs/extending.md writes three.

    A training step (`pretraining.PretrainingStep`) asks in this order: `active`, `forward` (once for each micro-batch),
    `collect`, and after the optimizer `commit`.

    Everything that an objective remembers from step to step (a centre, a queue, its pointer) is a parameter or a
    buffer, so that checkpoints hold it. What `forward` leaves for `collect` is a plain attribute, empty between steps.

    Attributes:
        uses_teacher: whether there is a momentum teacher.
        uses_masks: whether `forward` needs views with masked patches; the student's backbone then learns a mask vector.
        two_views: whether it compares exactly two views of an image.
        head_rows: "joint" runs a head once on the rows of all views, "per_view" once for each view; a backbone with
            batch norm then sees view by view, too. With batch norm these are different methods.
        momentum_of_next_step: the teacher's momentum is that of the step that follows. The authors of some methods move
            the teacher before a step, and so with that step's momentum; here it always moves after one.
        spec: the plain dict that tells two objectives apart; saved in checkpoints.

    One that wants short features, of the student alone:

    >>> class Short(Objective):
    ...     uses_teacher = False
    ...     spec = {"name": "short"}
    ...     def heads(self, width, region_width):
    ...         return nn.ModuleDict()
    ...     def forward(self, student, teacher, batch, progress):
    ...         return Losses({"length": student.pooled[0].square().mean()}, {"length": 1.0})
    >>> seen = Views(pooled=[torch.ones(2, 8)], regions=[], grids=[])
    >>> Short()(seen, None, {"views": []}, Progress(step=0, total=1)).total
    tensor(1.)
    """

    uses_teacher: bool = True
    uses_masks: bool = False
    two_views: bool = False
    head_rows: Literal["joint", "per_view"] = "joint"
    momentum_of_next_step: bool = False
    spec: dict[str, Any]

    def prepare(self, backbone: Backbone) -> None:
        """Change the student's backbone before the teacher's is copied from it, for example to freeze a part."""

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        """Heads of the student, copied to the teacher.

        A head is any module of rows (rows, in) -> (rows, ...). Its attribute ``reads`` says what it is fed: "pooled"
        (also where there is no such attribute), "regions", or the name of an earlier head. Its attribute
        ``prototypes``, if it has one, is a module that gives (k p).

        Args:
            width: channels of the backbone's pooled feature.
            region_width: channels of its regions.
        """
        raise NotImplementedError

    def student_only_heads(self) -> nn.ModuleDict:
        """Heads that the teacher does not have (predictors)."""
        return nn.ModuleDict()

    def active(self, progress: Progress) -> set[str] | None:
        """Names of the heads that `forward` reads now, None for all. The others do not run and stand still."""
        return None

    def student_sees(self, batch: Batch, progress: Progress) -> tuple[Sequence[Tensor], Sequence[Tensor | None] | None]:
        """Views and masks for the student, where they are not simply those of the batch."""
        return batch["views"], batch.get("masks") if self.uses_masks else None

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        """The losses of a micro-batch.

        Args:
            student: of all views.
            teacher: of the global views; None without a teacher.
            batch: what the loader gave: labels, indices, boxes, masks.
            progress: where training stands.
        """
        raise NotImplementedError

    def collect(self) -> Window:
        """What has gathered on this rank since the last `commit`."""
        return Window()

    def commit(self, window: Window) -> None:
        """Once for each optimizer step, after the optimizer and before the teacher: moves centres and queues, and
        starts to collect anew.

        Args:
            window: what all ranks have collected.
        """

    def reset(self) -> None:
        """Forget what has gathered since the last `commit`; a training that was interrupted may begin again."""

    def schedules(self, progress: Progress) -> dict[str, float]:
        """What moves with `progress`, for the log."""
        return {}

    @property
    def durations(self) -> dict[str, Duration]:
        """Parts of the training by the names of their settings; those that are too long are refused for you."""
        return {}

    def check(self, epochs: float) -> None:
        """Raise ValueError for settings that do not fit a training of `epochs` epochs."""


def rows_of(views: list[Tensor]) -> Tensor:
    """(b ... p) each -> (all rows, p)."""
    return torch.cat([view.flatten(0, -2) for view in views])


def split_like(rows: Tensor, views: list[Tensor]) -> list[Tensor]:
    """(all rows, ...) -> one tensor (b ... ...) per view: the way back of `rows_of`."""
    parts = rows.split([view.shape[:-1].numel() for view in views])
    return [part.unflatten(0, view.shape[:-1]) for part, view in zip(parts, views, strict=True)]


def check_positive(objective: Objective, *names: str) -> None:
    """Refuse settings of 0 or less.

    Raises:
        ValueError: with the setting and its value.
    """
    for name in names:
        if objective.spec[name] <= 0:
            raise ValueError(f"{type(objective).__name__} needs a positive {name}, got {objective.spec[name]}")


def check_two_views(objective: Objective, views: list[Tensor]) -> list[Tensor]:
    """The views, for an objective that compares two and no more.

    Raises:
        ValueError: there are more or less.
    """
    if len(views) != 2:
        raise ValueError(
            f"{type(objective).__name__} compares two views of an image, got {len(views)}; set augment.num_global=2 "
            "and augment.num_local=0 (augment=global_only)"
        )
    return views
