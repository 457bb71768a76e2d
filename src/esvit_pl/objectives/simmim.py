"""SimMIM (arXiv 2111.09886): the student paints the pixels of what is hidden from it; no teacher."""

# b images | n regions | c channels | i, j pixels under a region

from __future__ import annotations

import torch
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.distributed import num_ranks, sum_over_ranks
from esvit_pl.losses.masked import cells
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, check_positive
from esvit_pl.precision import wide
from esvit_pl.specs import spec_of


class SimMIMObjective(Objective):
    """Absolute difference of painted and true normalised pixels, over all hidden ones.

    Args:
        cell: side of a region in pixels, `augment.mask_cell`.
        channels: of the images.

    >>> objective = SimMIMObjective(cell=8)
    >>> objective.heads(width=16, region_width=16)["pixels"]
    Linear(in_features=16, out_features=192, bias=True)
    """

    uses_teacher = False
    uses_masks = True

    def __init__(self, *, cell: int = 32, channels: int = 3) -> None:
        super().__init__()
        self.spec = spec_of("simmim", locals())
        check_positive(self, "cell", "channels")

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        pixels = nn.Linear(region_width, self.spec["channels"] * self.spec["cell"] ** 2)
        pixels.reads = "regions"  # type: ignore[assignment]
        return nn.ModuleDict({"pixels": pixels})

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        wrong, hidden = [], []
        for view, mask, painted, grid in zip(
            batch["views"], batch["masks"], student.z["pixels"], student.grids, strict=True
        ):
            if mask is not None:
                true, shown = wide(cells(view, grid)), mask.flatten(1)  # (b n c i j), (b n)
                self.check_cell(true)
                wrong.append(((wide(painted) - true.flatten(2)).abs().sum(-1) * shown).sum())
                hidden.append(shown.sum() * true[0, 0, 0].numel())
        # Where processes hide different numbers of pixels, the mean of their losses is that over all pixels.
        pixels = (sum_over_ranks(torch.stack(hidden).sum().to(wrong[0].dtype)) + 1e-5) / num_ranks()
        loss: Tensor = torch.stack(wrong).sum() / pixels / self.spec["channels"]
        return Losses({"pixels": loss}, {"pixels": 1.0})

    def check_cell(self, true: Tensor) -> None:
        """Refuse regions of another size than the head paints."""
        wanted = (self.spec["channels"], self.spec["cell"], self.spec["cell"])
        if true.shape[2:] != wanted:
            raise ValueError(
                f"SimMIMObjective paints regions of {wanted[0]} x {wanted[1]} x {wanted[2]} (channels, pixels), got "
                f"{' x '.join(map(str, true.shape[2:]))}; set loss.cell and augment.mask_cell to the side of a region "
                "of this backbone in pixels"
            )
