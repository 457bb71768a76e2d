"""SwAV (arXiv 2006.09882): views must agree on prototypes to which all images are dealt equally; no teacher."""

# b images | q rows of the queue on this process | p projection width | k prototypes

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.distributed import num_ranks, rank
from esvit_pl.heads import MLPHead, UnitPrototypes
from esvit_pl.losses import AssignmentLoss, assign
from esvit_pl.metrics.collapse import largest_entropy
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window, check_positive
from esvit_pl.precision import wide
from esvit_pl.specs import spec_of


class SwAVObjective(Objective):
    """Codes of the two first views, which every other view must predict.

    Small batches have fewer images than prototypes: then earlier images are dealt out, too, from a queue. It begins to
    fill at an epoch, and is used as soon as it is full. Every process uses its own part of it.

    Args:
        num_prototypes: k.
        hidden_dim: width of the head's hidden layer.
        out_dim: width p of the projections.
        temp: temperature of the predictions.
        sharpness: epsilon of the codes; 0.03 where the loss stays at ln k.
        iterations: of Sinkhorn's algorithm.
        queue_length: projections of each of the two views in the queue, on all processes together; 0 for none, 3840
            for a global batch of 256.
        queue_start_epoch: epoch in which the queue begins to fill.

    >>> SwAVObjective(num_prototypes=8, hidden_dim=8, out_dim=4).heads(16, 16)["projection"].prototypes().shape
    torch.Size([8, 4])
    """

    uses_teacher = False
    queue: Tensor
    filled: Tensor
    # Not buffers: the first is empty between optimizer steps, the second is `filled` where no GPU has to be asked.
    _waiting: list[Tensor]
    _filled: int | None

    def __init__(
        self,
        *,
        num_prototypes: int = 3000,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        temp: float = 0.1,
        sharpness: float = 0.05,
        iterations: int = 3,
        queue_length: int = 0,
        queue_start_epoch: int = 15,
    ) -> None:
        super().__init__()
        self.spec = spec_of("swav", locals())
        check_positive(self, "num_prototypes", "hidden_dim", "out_dim", "temp", "sharpness", "iterations")
        for name in ("queue_length", "queue_start_epoch"):
            if self.spec[name] < 0:
                raise ValueError(f"SwAVObjective needs {name} of 0 or more, got {self.spec[name]}")
        self.loss = AssignmentLoss(temp)
        self.register_buffer("queue", torch.zeros(2, queue_length, out_dim))  # newest first
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))  # how many rows of it hold a projection
        self.reset()

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        prototypes = UnitPrototypes(self.spec["out_dim"], self.spec["num_prototypes"])
        widths = [width, self.spec["hidden_dim"], self.spec["out_dim"]]
        return nn.ModuleDict({"projection": MLPHead(widths, unit=True, prototypes=prototypes)})

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        z, prototypes = [wide(view) for view in student.z["projection"]], wide(student.prototypes["projection"])
        with torch.autocast(prototypes.device.type, enabled=False):
            scores = [view @ prototypes.T for view in z]
            codes = self.codes(torch.stack(scores[:2]).detach(), prototypes.detach())
        loss = self.loss(scores, list(codes))
        if self.training and self.spec["queue_length"] and progress.epoch >= self.spec["queue_start_epoch"]:
            self._waiting.append(torch.stack([view.detach() for view in z[:2]], dim=1))  # (b 2 p)
        said = torch.special.entr(codes.mean((0, 1))).sum()
        diagnostics = {
            "assignment_chance_share": loss.detach() / math.log(max(self.spec["num_prototypes"], 2)),
            "prototypes_used_share": said / largest_entropy(self.spec["num_prototypes"]),
        }
        return Losses({"assignment": loss}, {"assignment": 1.0}, diagnostics)

    def codes(self, scores: Tensor, prototypes: Tensor) -> Tensor:
        """(2 b k) scores of the two first views -> (2 b k) assignments, computed together with those of the queue."""
        number = scores.shape[1]
        if self.uses_queue:
            if self.spec["queue_length"] % num_ranks():
                raise ValueError(
                    f"loss.queue_length={self.spec['queue_length']} cannot be dealt to {num_ranks()} processes "
                    "equally; make it a multiple of their number"
                )
            rows = self.queue.chunk(num_ranks(), dim=1)[rank()].to(prototypes.dtype)  # (2 q p)
            scores = torch.cat([rows @ prototypes.T, scores], dim=1)
        assigned = assign(scores, sharpness=self.spec["sharpness"], iterations=self.spec["iterations"])
        return assigned[:, -number:]

    @property
    def uses_queue(self) -> bool:
        """Whether the queue is full."""
        if self._filled is None:  # asked once, and not in every step, because the CPU would wait for the GPU
            self._filled = int(self.filled)
        return 0 < int(self.spec["queue_length"]) <= self._filled

    def collect(self) -> Window:
        return Window(gather={"projections": torch.cat(self._waiting)} if self._waiting else {})

    @torch.no_grad()
    def commit(self, window: Window) -> None:
        if "projections" in window.gather:
            new, length = window.gather["projections"].transpose(0, 1), self.spec["queue_length"]  # (2 all p)
            self.queue.copy_(torch.cat([new.to(self.queue.dtype), self.queue], dim=1)[:, :length])
            self._filled = min(length, (self._filled or 0) + new.shape[1])
            self.filled.fill_(self._filled)
        self._waiting = []

    def reset(self) -> None:
        self._waiting, self._filled = [], None

    def check(self, epochs: float) -> None:
        if self.spec["queue_length"] and self.spec["queue_start_epoch"] >= epochs:
            raise ValueError(
                f"loss.queue_start_epoch={self.spec['queue_start_epoch']} lies at or after the end of training "
                f"(trainer.max_epochs={epochs:g}): the queue would never fill; loss.queue_start_epoch=0 would do, or "
                "loss.queue_length=0 for none"
            )
