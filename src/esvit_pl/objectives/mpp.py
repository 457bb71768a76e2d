"""Masked patch prediction of the ViT paper (arXiv 2010.11929, B.1.2): the mean colour of spoilt patches; no teacher."""

# b images | n regions

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.augment.batch import Batch
from esvit_pl.distributed import mean_over_ranks, num_ranks, own_rows
from esvit_pl.losses.masked import cells, color_classes
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, check_positive
from esvit_pl.precision import wide
from esvit_pl.specs import spec_of


class MPPObjective(Objective):
    """The student says the mean colour of every spoilt patch, as one of so many classes.

    The batch's masks say which patches are spoilt. Some of them are hidden behind the backbone's mask vector, some show
    another patch of the same image, and the others stay as they are.

    Args:
        bits: of a channel's mean; 3 make 512 classes.
        hidden_share: of the spoilt patches are hidden.
        swapped_share: of them show another patch.
        mean, std: with which the images were normalised (``augment.normalize=dataset``), one number for each channel.

    >>> MPPObjective(bits=2).heads(width=16, region_width=16)["color"]
    Linear(in_features=16, out_features=64, bias=True)
    """

    uses_teacher = False
    uses_masks = True

    def __init__(
        self,
        *,
        bits: int = 3,
        hidden_share: float = 0.8,
        swapped_share: float = 0.1,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.spec = spec_of("mpp", locals())
        check_positive(self, "bits")
        if min(hidden_share, swapped_share) < 0 or hidden_share + swapped_share > 1:
            raise ValueError(
                "MPPObjective needs hidden_share and swapped_share of 0 or more, 1 at most together, got "
                f"{hidden_share} and {swapped_share}"
            )
        self.num_classes = 2 ** (bits * len(mean))

    def heads(self, width: int, region_width: int) -> nn.ModuleDict:
        color = nn.Linear(region_width, self.num_classes)
        color.reads = "regions"  # type: ignore[assignment]
        return nn.ModuleDict({"color": color})

    def student_sees(self, batch: Batch, progress: Progress) -> tuple[Sequence[Tensor], Sequence[Tensor | None] | None]:
        seen = [
            spoil(
                view, mask, self.spec["hidden_share"], self.spec["swapped_share"], seed=(progress.micro_batch, number)
            )
            for number, (view, mask) in enumerate(zip(batch["views"], batch["masks"], strict=True))
        ]
        return [spoilt.view for spoilt in seen], [spoilt.mask for spoilt in seen]

    def forward(self, student: Views, teacher: Views | None, batch: Batch, progress: Progress) -> Losses:
        losses, spoilt = [], []
        for view, mask, said, grid in zip(
            batch["views"], batch["masks"], student.z["color"], student.grids, strict=True
        ):
            if mask is not None:
                mean, std = (view.new_tensor(self.spec[name])[:, None, None] for name in ("mean", "std"))
                colors = color_classes(view * std + mean, grid, bits=self.spec["bits"])  # (b n)
                wrong = F.cross_entropy(wide(said).flatten(0, 1), colors.flatten(), reduction="none")
                losses.append((wrong * mask.flatten()).sum())
                spoilt.append(mask.sum())
        # Where processes spoil different numbers of patches, the mean of their losses is that over all patches.
        number = mean_over_ranks(torch.stack(spoilt).sum().to(losses[0].dtype))
        loss = torch.stack(losses).sum() / number.clamp_min(1e-9)
        share = loss.detach() / math.log(self.num_classes)
        return Losses({"color": loss}, {"color": 1.0}, {"color_chance_share": share})


class Spoilt(NamedTuple):
    """A view of which some patches are wrong or hidden."""

    view: Tensor
    """(b c h w)"""
    mask: Tensor | None
    """(b h w) bool: what is hidden."""


def spoil(view: Tensor, mask: Tensor | None, hidden: float, swapped: float, *, seed: tuple[int, int]) -> Spoilt:
    """Hide the share `hidden` of the masked patches, and let the share `swapped` show another patch of their image.

    Args:
        view: (b c h w).
        mask: (b h w) bool on the grid of patches, or None for a view that stays whole.
        seed: number of the micro-batch and of the view. Several processes draw what one would draw.
    """
    if mask is None:
        return Spoilt(view, None)
    (b, *grid), n = mask.shape, mask[0].numel()
    generator = torch.Generator().manual_seed(2 * seed[0] + (seed[1] << 48))
    chance = torch.rand(b * num_ranks(), n, generator=generator)
    other = torch.randint(n, (b * num_ranks(), n), generator=generator)
    own = own_rows(b, device=chance.device)
    chance, other = chance[own].to(view.device), other[own].to(view.device)
    wrong = mask.flatten(1) & (chance >= hidden) & (chance < hidden + swapped)
    source = torch.where(wrong, other, torch.arange(n, device=view.device))  # (b n)
    patches = cells(view, (grid[0], grid[1]))  # (b n c i j)
    patches = torch.take_along_dim(patches, source[:, :, None, None, None], dim=1)
    whole = patches.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return Spoilt(whole, mask & (chance.view_as(mask) < hidden))
