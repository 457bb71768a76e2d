"""The momentum teacher: a copy of the student whose parameters follow by an exponential moving average."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy of `student` that shares no storage with it, asks for no gradient and has no stochastic depth."""
    teacher = deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        if isinstance(module, Backbone):
            module.set_grad_checkpointing(False)  # there is no backward
    check_apart(teacher, student)
    return teacher


@torch.no_grad()
def ema_update_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for the teacher's parameters, in place.

    Args:
        teacher: its parameters' names are the student's.
        student: may have more.
        momentum: share of the old teacher in the new one.

    Buffers stay the teacher's own: batch norm statistics come from what the teacher saw, and averaging an integer
    buffer (Swin's ``relative_position_index``) would turn it into zeros without an error.

    >>> student = nn.Linear(1, 1)
    >>> teacher = make_teacher(student)
    >>> _ = nn.init.constant_(student.weight, 2.0), nn.init.constant_(teacher.weight, 1.0)
    >>> ema_update_(teacher, student, momentum=0.75)
    >>> teacher.weight.item()
    1.25
    """
    theirs = dict(student.named_parameters())
    pairs = [(parameter, theirs[name]) for name, parameter in teacher.named_parameters()]
    mine: list[Tensor] = [parameter for parameter, _ in pairs]
    # Interpolation instead of two products: where the student stands still, so does the teacher, to the last bit.
    torch._foreach_lerp_(mine, [parameter.detach() for _, parameter in pairs], 1 - momentum)


def check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse networks that share storage: a teacher that moves with its student collapses at loss = ln(prototypes).

    Raises:
        ValueError: naming the first shared parameter or buffer.
    """
    theirs = {_address(tensor): name for name, tensor in _tensors(student)}
    for name, tensor in _tensors(teacher):
        if tensor.numel() and tensor.device.type != "meta" and _address(tensor) in theirs:
            raise ValueError(
                f"the teacher shares storage with the student: teacher {name!r} is student "
                f"{theirs[_address(tensor)]!r}; "
                "make it with esvit_pl.ema.make_teacher(student)"
            )


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
