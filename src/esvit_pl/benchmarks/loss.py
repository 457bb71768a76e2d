"""``python -m esvit_pl.benchmarks.loss``: the prototype losses streamed, against all logits and all pairs of views.

On another device: ``python -m esvit_pl.benchmarks.loss --device cuda --batch-size 64``.
"""

# s, t student and teacher views | b images | n, m their regions | p projection width | k prototypes

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.benchmarks.vil import peak_bytes
from esvit_pl.losses import RegionLoss, ViewLoss, partition_and_target

STUDENT_TEMP, TEACHER_TEMP = 0.1, 0.04


class LossCost(NamedTuple):
    """Of one loss with its prototype layer, forward and backward, in both forms."""

    part: str
    """ "region" or "view"."""
    straight_seconds: float
    """Median of the repeats."""
    streamed_seconds: float
    speedup: float
    """Median over the repeats of straightforward / streamed, one after the other."""
    straight_bytes: int
    """Most memory beyond the inputs."""
    streamed_bytes: int
    error: float
    """Largest relative error of the streamed loss, of its gradient to z and of that to W, by their norms."""


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
    matches: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """{(t, s): (b n)}: teacher region of each student region."""


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
    logits = [z @ given.prototypes.mT / STUDENT_TEMP for z in given.z]  # (b n k)
    with torch.no_grad():
        targets = [
            ((z @ given.teacher_prototypes.mT - given.center) / TEACHER_TEMP).softmax(-1) for z in given.teacher_z
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
        rows, given.prototypes, STUDENT_TEMP, teacher_rows, target, center, TEACHER_TEMP
    )
    partitions, u = partition.split(sizes), u_rows.split(sizes[:2])
    if isinstance(loss, ViewLoss):
        return loss([z[:, 0] for z in given.z], list(partitions), list(u))
    shaped = [part.view(z.shape[:-1]) for part, z in zip(partitions, given.z, strict=True)]
    targets = [part.view(z.shape) for part, z in zip(u, given.teacher_z, strict=True)]
    return loss(given.z, shaped, targets, given.matches)


def loss_costs(
    *,
    batch_size: int = 8,
    num_prototypes: int = 65536,
    dim: int = 256,
    regions: tuple[int, ...] = (49,) * 2 + (9,) * 8,
    repeats: int = 5,
    device: str = "cpu",
) -> list[LossCost]:
    """Costs of the region loss and of the view loss in both forms, measured in turn.

    Args:
        batch_size: images.
        num_prototypes: k.
        dim: p.
        regions: of each student view; the first two are the teacher's too. As Swin's last stage: 49 at 224 px, 9 at 96.
        repeats: pairs of passes measured, after one to warm up.
        device: where.
    """
    costs = []
    losses: dict[str, RegionLoss | ViewLoss] = {"region": RegionLoss(STUDENT_TEMP), "view": ViewLoss(STUDENT_TEMP)}
    for part, loss in losses.items():
        counts = list(regions) if part == "region" else [1] * len(regions)
        given = problem(counts, batch_size=batch_size, num_prototypes=num_prototypes, dim=dim, device=device)

        def straight(given: Problem = given) -> list[Tensor]:
            return _loss_and_gradients(given, straightforward(given))

        def stream(given: Problem = given, loss: RegionLoss | ViewLoss = loss) -> list[Tensor]:
            return _loss_and_gradients(given, streamed(given, loss))

        error = max(_relative(mine, wanted) for mine, wanted in zip(stream(), straight(), strict=True))
        pairs = [(_seconds(straight, device), _seconds(stream, device)) for _ in range(repeats)]
        costs.append(
            LossCost(
                part,
                median(a for a, _ in pairs),
                median(b for _, b in pairs),
                median(a / b for a, b in pairs),
                _extra_bytes(straight, device),
                _extra_bytes(stream, device),
                error,
            )
        )
    return costs


def _loss_and_gradients(given: Problem, loss: Tensor) -> list[Tensor]:
    *to_z, to_w = torch.autograd.grad(loss, [*given.z, given.prototypes])
    return [loss.detach(), torch.cat([grad.flatten() for grad in to_z]), to_w]


def _relative(mine: Tensor, wanted: Tensor) -> float:
    return ((mine - wanted).norm() / wanted.norm()).item()


def _seconds(function: Callable[[], object], device: str) -> float:
    start = perf_counter()
    function()
    if device != "cpu":
        torch.accelerator.synchronize()
    return perf_counter() - start


def _extra_bytes(function: Callable[[], object], device: str) -> int:
    if not device.startswith("cuda"):

        def run() -> None:
            function()

        return peak_bytes(run)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def _machine(device: str) -> str:
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, {device}, {where}, float32"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    print(f"{_machine(asked.device)}; batch {asked.batch_size}, 2 x 49 + 8 x 9 regions, 65,536 prototypes of width 256")
    print("loss and prototype layer, forward and backward, 18 pairs of views; memory beyond the inputs")
    for cost in loss_costs(batch_size=asked.batch_size, repeats=asked.repeats, device=asked.device):
        print(
            f"{cost.part:<7} straightforward {cost.straight_seconds:6.2f} s {cost.straight_bytes / 2**20:6.0f} MiB   "
            f"streamed {cost.streamed_seconds:6.2f} s {cost.streamed_bytes / 2**20:6.0f} MiB   "
            f"{cost.speedup:5.2f} times faster, {cost.straight_bytes / cost.streamed_bytes:5.1f} times less memory   "
            f"error {cost.error:.1e}"
        )
