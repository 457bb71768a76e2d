"""What an objective is: the heads it needs, the loss it takes of two networks' views, and what it moves afterwards."""

# b images | n regions | d, c channels | p projection width | k prototypes

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Views:
    """What one network sees in all its views of a batch: lists over views, global ones first."""

    pooled: list[Tensor]
    """(b d) each."""
    regions: list[Tensor]
    """(b n c) each; n differs between sizes."""
    grids: list[tuple[int, int]]
    """(h, w) each, h * w = n."""
    z: dict[str, list[Tensor]] = field(default_factory=dict)
    """Head name -> (b p) or (b n p) each."""
    prototypes: dict[str, Tensor] = field(default_factory=dict)
    """Head name -> (k p), for heads that have prototypes."""


class Progress(NamedTuple):
    """Where training stands."""

    epoch: int
    step: int
    total: int


@dataclass
class Losses:
    """Terms of the loss and what they say of the network's health."""

    terms: dict[str, Tensor]
    """Name -> scalar, unweighted."""
    weights: dict[str, float]
    """Name -> its weight in the total."""
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Name -> detached scalar."""

    @property
    def total(self) -> Tensor:
        """The scalar to minimise."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum()

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
        return Losses({name: term.detach() for name, term in self.terms.items()}, self.weights, dict(self.diagnostics))


class Objective(nn.Module):
    """Base class of all objectives; chosen by the config group ``loss``.

    A step of the pretrainer asks, in this order: `active`, `forward` (once per micro-batch), `window` (what must be
    summed over ranks), `commit` (after the optimizer, before the teacher).

    Attributes:
        uses_teacher: whether there is a momentum teacher at all.
        spec: the plain dict that tells two objectives apart; saved in checkpoints.
    """

    uses_teacher: bool = True
    spec: dict[str, Any]

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        """Heads of the student, copied to the teacher."""
        raise NotImplementedError

    def student_only_heads(self) -> nn.ModuleDict:
        """Heads that the teacher does not have (predictors)."""
        return nn.ModuleDict()

    def active(self, progress: Progress) -> set[str]:
        """Names of the heads that `forward` reads now. The others are not run and take no part in the step."""
        raise NotImplementedError

    def forward(self, student: Views, teacher: Views | None, progress: Progress) -> Losses:
        raise NotImplementedError

    def window(self) -> Tensor | None:
        """(any,): statistics since the last `commit` whose sum over ranks `commit` takes."""
        return None

    def commit(self, window: Tensor | None, when: Tensor | None = None) -> None:
        """Once per optimizer step, after the optimizer and before the teacher: centres, queues.

        Args:
            window: that of `window`, summed over ranks.
            when: 0-d bool on the device, None for True. Where it is False the step's loss was not finite, and nothing
                may move, to the last bit (`guard.move_`); the statistics are forgotten all the same.
        """

    def reset(self) -> None:
        """Forget the statistics since the last `commit`."""

    def schedules(self, progress: Progress) -> dict[str, float]:
        """What moves with `progress`, for the log."""
        return {}

    def check(self, epochs: float) -> None:
        """Raise ValueError for settings that do not fit a training of `epochs` epochs."""
