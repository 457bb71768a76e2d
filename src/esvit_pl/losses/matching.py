"""Which teacher region a student region belongs to (the paper's region-level task)."""

# s, t student and teacher views | b images | n, m their regions | d channels

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def match_regions(student: Tensor, teacher: Tensor) -> Tensor:
    """For each student region, the index of the teacher region with the highest cosine.

    Args:
        student: (b n d) backbone features.
        teacher: (b m d) backbone features.

    Returns:
        (b n), numbers below m.
    """
    return (F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT).argmax(-1)


def match_views(student: list[Tensor], teacher: list[Tensor]) -> dict[tuple[int, int], Tensor]:
    """`match_regions` for every teacher view t and every student view s != t, as {(t, s): (b n)}."""
    return {
        (t, s): match_regions(student[s], teacher[t])
        for t in range(len(teacher))
        for s in range(len(student))
        if s != t
    }


def matched_share(matches: dict[tuple[int, int], Tensor], num_regions: list[int]) -> Tensor:
    """Share of teacher regions that any student region was matched to, averaged over teacher views.

    At 1 / m all student regions match the same teacher region: collapse. Crops are drawn again in every step, so the
    mean over steps is the share of teacher regions that were ever matched in them.

    Args:
        matches: of `match_views`.
        num_regions: m of each teacher view.
    """
    shares = []
    for t, m in enumerate(num_regions):
        index = torch.cat([match for (view, _), match in matches.items() if view == t], dim=1)  # (b all regions)
        hit = torch.zeros(index.shape[0], m, device=index.device).scatter_(1, index, 1.0)
        shares.append(hit.mean())
    return torch.stack(shares).mean()
