"""The prototype losses streamed, against all logits and all pairs of views."""

# s, t student and teacher views | b images | n, m their regions | p projection width | k prototypes

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison import Comparison, compare
from esvit_pl.losses import RegionLoss, ViewLoss, partition_and_target

STUDENT_TEMP, TEACHER_TEMP = 0.1, 0.04


@dataclass
class Problem:
    """What the two networks give to a loss."""

    z: list[Tensor]
    """(b n p) student projections of each view; leaves that ask for gradients."""
    prototypes: Tensor
    """(k p), a leaf that asks for gradients."""
    teacher_z: list[Tensor]
    """(b m p) of each teacher view."""
    teacher_prototypes: Tensor
    center: Tensor
    """(k,)."""
    matches: dict[tuple[int, int], Tensor]
    """{(t, s): (b n)}: teacher region of each student region."""
    student_temp: float = STUDENT_TEMP
    teacher_temp: float = TEACHER_TEMP


def problem(regions: list[int], *, batch_size: int, num_prototypes: int, dim: int, device: str = "cpu") -> Problem:
    """Random unit projections, prototypes of length 1 and a teacher close to the student; two teacher views."""
    torch.manual_seed(0)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, device=device), dim=-1)

    prototypes = unit(num_prototypes, dim)
    return Problem(
        z=[unit(batch_size, n, dim).requires_grad_() for n in regions],
        prototypes=prototypes.clone().requires_grad_(),
        teacher_z=[unit(batch_size, n, dim) for n in regions[:2]],
        teacher_prototypes=F.normalize(prototypes + 0.1 * unit(num_prototypes, dim), dim=-1),
        center=0.01 * torch.randn(num_prototypes, device=device),
        matches={
            (t, s): torch.randint(regions[t], (batch_size, n), device=device)
            for t in range(2)
            for s, n in enumerate(regions)
            if s != t
        },
    )


def straightforward(given: Problem) -> Tensor:
    """The mean over pairs of views of cross entropies between logits, each pair with its gathered targets."""
    logits = [z @ given.prototypes.mT / given.student_temp for z in given.z]  # (b n k)
    with torch.no_grad():
        targets = [
            ((z @ given.teacher_prototypes.mT - given.center) / given.teacher_temp).softmax(-1) for z in given.teacher_z
        ]  # (b m k)
    losses = []
    for (t, s), match in given.matches.items():
        target = targets[t].gather(1, match[..., None].expand(-1, -1, targets[t].shape[-1]))  # (b n k)
        losses.append(-(target * logits[s].log_softmax(-1)).sum(-1).mean())
    return torch.stack(losses).mean()


def streamed(given: Problem, loss: RegionLoss | ViewLoss) -> Tensor:
    """The same by way of `losses`, as `objectives.esvit` goes."""
    rows, sizes = torch.cat([z.flatten(0, 1) for z in given.z]), [z.shape[0] * z.shape[1] for z in given.z]
    teacher_rows = torch.cat([z.flatten(0, 1) for z in given.teacher_z])
    target, center = given.teacher_prototypes, given.center
    partition, (u_rows, _) = partition_and_target(
        rows, given.prototypes, given.student_temp, teacher_rows, target, center, given.teacher_temp
    )
    partitions, u = partition.split(sizes), u_rows.split(sizes[:2])
    if isinstance(loss, ViewLoss):
        return loss.forward([z[:, 0] for z in given.z], list(partitions), list(u))
    shaped = [part.view(z.shape[:-1]) for part, z in zip(partitions, given.z, strict=True)]
    targets = [part.view(z.shape) for part, z in zip(u, given.teacher_z, strict=True)]
    return loss.forward(given.z, shaped, targets, given.matches)


def loss_costs(
    *,
    batch_size: int = 8,
    num_prototypes: int = 65536,
    dim: int = 256,
    regions: tuple[int, ...] = (49,) * 2 + (9,) * 8,
    repeats: int = 5,
    device: str = "cpu",
    bf16: bool = False,
) -> Iterator[Comparison]:
    """Costs of the region loss and of the view loss in both forms, measured in turn.

    Args:
        batch_size: images.
        num_prototypes: k.
        dim: p.
        regions: of each student view; the first two are the teacher's too. As Swin's last stage: 49 at 224 px, 9 at 96.
        repeats: pairs of passes measured.
        device: where.
        bf16: matrices are multiplied in bfloat16 where autocast (the straightforward form) or the kernels (ours) can.
    """
    autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
    losses: dict[str, RegionLoss | ViewLoss] = {"region": RegionLoss(STUDENT_TEMP), "view": ViewLoss(STUDENT_TEMP)}
    for part, loss in losses.items():
        counts = list(regions) if part == "region" else [1] * len(regions)
        given = problem(counts, batch_size=batch_size, num_prototypes=num_prototypes, dim=dim, device=device)
        yield compare(
            f"{part} loss",
            lambda given=given: _with_gradients(given, autocast(straightforward)(given)),  # type: ignore[misc]
            lambda given=given, loss=loss: _with_gradients(given, autocast(streamed)(given, loss)),  # type: ignore[misc]
            repeats=repeats,
            device=device,
        )


def _with_gradients(given: Problem, loss: Tensor) -> list[Tensor]:
    *to_z, to_w = torch.autograd.grad(loss, [*given.z, given.prototypes])
    return [loss.detach(), torch.cat([grad.flatten() for grad in to_z]), to_w]
