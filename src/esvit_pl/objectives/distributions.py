"""Distributions over prototypes of student and teacher, as DINO's, EsViT's and iBOT's losses take them."""

# b images | n regions | p projection width

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from esvit_pl.losses import Center, partition_and_target
from esvit_pl.metrics.collapse import largest_entropy
from esvit_pl.objectives.interface import Views, rows_of, split_like
from esvit_pl.precision import wide


class Distributions(NamedTuple):
    """The student's of each of its views and the teacher's of each of its own, in the form of `losses.prototypes`."""

    z: list[Tensor]
    """(b p) or (b n p): projections of the student's views."""
    partitions: list[Tensor]
    """(b) or (b n): their log partitions."""
    targets: list[Tensor]
    """(b p) or (b n p): expected prototypes of the teacher's views."""
    entropy: Tensor
    """0-d: mean entropy of the teacher's distributions, in nats."""
    diagnostics: dict[str, Tensor]
    """What they say of the health of the head that made them."""


def distributions(
    name: str,
    student: Views,
    teacher: Views,
    center: Center,
    *,
    student_temp: float,
    teacher_temp: float,
    own_views: bool = True,
    observe: bool = True,
) -> Distributions:
    """What the losses of one head read.

    Args:
        name: the head's.
        center: of the teacher's logits.
        student_temp, teacher_temp: temperatures.
        own_views: also take the views that the student alone has seen.
        observe: let the centre collect the teacher's projections.
    """
    teacher_z = list(map(wide, teacher.z[name]))
    z = list(map(wide, student.z[name]))[: None if own_views else len(teacher_z)]
    prototypes, teacher_prototypes = wide(student.prototypes[name]), wide(teacher.prototypes[name])
    partition, (u, entropy) = partition_and_target(
        rows_of(z), prototypes, student_temp, rows_of(teacher_z), teacher_prototypes, center.value, teacher_temp
    )
    if observe:
        center.observe(rows_of(teacher_z), teacher_prototypes)
    mean = entropy.mean()
    diagnostics = {
        f"{name}_teacher_entropy": mean,
        f"{name}_teacher_entropy_share": mean / largest_entropy(len(center.value)),
        f"{name}_center_norm": center.value.norm(),
    }
    return Distributions(z, split_like(partition, z), split_like(u, teacher_z), mean, diagnostics)
