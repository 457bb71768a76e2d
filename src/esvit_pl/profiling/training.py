"""A training without a Trainer: what benchmarks and the memory prediction run."""

# v views | b images | c channels | h, w pixels

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esvit_pl.augment import PARAMS
from esvit_pl.augment.batch import Batch
from esvit_pl.backbones import Backbone
from esvit_pl.objectives.interface import Losses
from esvit_pl.optim import OptimizerRecipe, parameter_groups
from esvit_pl.pretraining import PretrainingStep
from esvit_pl.schedules import Progress

HALFWAY = Progress(step=10**6, total=2 * 10**6)
"""A training of a million epochs, half of it done: every head and every parameter takes part, whatever waits first."""


class Training:
    """Takes the steps of a training one by one, in Lightning's order.

    Gradients of the step before live through the first forward pass: Lightning lets go of them before the backward one.

    Args:
        step: what is trained; it is in train mode from then on.
        recipe: its optimizer.
        autocast: type to which networks may round; None leaves them as they are.

    >>> from esvit_pl.backbones import build
    >>> from esvit_pl.objectives import EsViTObjective
    >>> swin = build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    >>> step = PretrainingStep(swin, EsViTObjective(num_prototypes=8, hidden_dim=8, out_dim=4))
    >>> training = Training(step, OptimizerRecipe())
    >>> training(Noise(step, [32, 32, 16], batch_size=2).batch()).ndim
    0
    """

    def __init__(self, step: PretrainingStep, recipe: OptimizerRecipe, *, autocast: torch.dtype | None = None) -> None:
        self.step, self.recipe, self.autocast = step.train(), recipe, autocast
        self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self.recipe.build(parameter_groups(self.step.student), scaled=self.autocast is torch.float16)

    def __call__(self, batch: Batch, *, first: bool = True, last: bool = True, share: float = 1.0) -> Tensor:
        """A micro-batch; the loss.

        Args:
            batch: where the networks are.
            first: whether it begins an optimizer step.
            last: whether it ends one.
            share: of the optimizer step's loss.
        """
        loss = self.forward(batch).total * share
        if first:
            self.optimizer.zero_grad()
        self.backward(loss)
        if last:
            self.update()
        return loss.detach()

    def forward(self, batch: Batch) -> Losses:
        rounding: AbstractContextManager[Any] = nullcontext()
        if self.autocast is not None:
            rounding = torch.autocast(batch["views"][0].device.type, self.autocast)
        with rounding:
            losses: Losses = self.step(batch, HALFWAY)
        return losses

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        """Clip, optimizer, centres, the teacher's average."""
        self.recipe.set_(self.optimizer, HALFWAY, global_batch=256)
        self.step.before_optimizer(HALFWAY)
        self.optimizer.step()
        self.step.finish(HALFWAY)


class Noise:
    """Batches of noise with everything that a training loader gives.

    Args:
        step: which reads them. Its backbone says how many channels images have, and how large the masks are.
        sides: of the views in pixels, global ones first.
        batch_size: images.
        dtype: of the views.
    """

    def __init__(
        self, step: PretrainingStep, sides: Sequence[int], batch_size: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.sides, self.batch_size, self.dtype = list(sides), batch_size, dtype
        self.channels = channels_of(step.encoder)
        self.grids: list[tuple[int, int]] = []
        """(h, w) of the mask of each global view; empty without masks."""
        if step.objective.uses_masks:
            shapes = deepcopy(step.encoder).to("meta").eval()
            images = [torch.empty(1, self.channels, side, side, device="meta") for side in sides[: step.num_global]]
            self.grids = [shapes(image).grid for image in images]

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """The next one. The global views are masked at random, if the objective uses masks."""
        b, v = self.batch_size, len(self.sides)
        batch: Batch = {
            "views": [
                torch.randn(b, self.channels, side, side, device=device, dtype=self.dtype) for side in self.sides
            ],
            "label": torch.zeros(b, dtype=torch.long, device=device),
            "index": torch.arange(b, device=device),
            "boxes": torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).repeat(b, v, 1),
            "flipped": torch.zeros(b, v, dtype=torch.bool, device=device),
            "params": torch.zeros(b, v, len(PARAMS), device=device),
        }
        if self.grids:
            masks: list[Tensor | None] = [torch.rand(b, h, w, device=device) < 0.5 for h, w in self.grids]
            batch["masks"] = masks + [None] * (v - len(masks))
        return batch


def on_noise(
    make: Callable[[], PretrainingStep],
    recipe: OptimizerRecipe,
    sides: Sequence[int],
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> partial[Tensor]:
    """A new training that takes a step on one batch of noise whenever it is called."""
    torch.manual_seed(0)
    step = make()
    return partial(Training(step, recipe, autocast=autocast), Noise(step, sides, batch_size).batch(device))


def channels_of(backbone: Backbone) -> int:
    """The number of channels that the images must have; 3 if a foreign backbone does not say."""
    return int(backbone.spec.get("in_chans", 3))
