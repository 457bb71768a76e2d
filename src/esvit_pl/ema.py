"""The momentum teacher: a copy of the student whose parameters follow by an exponential moving average."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone
from esvit_pl.guard import move_

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
def ema_update_(teacher: nn.Module, student: nn.Module, momentum: float, *, when: Tensor | None = None) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for the teacher's parameters, in place.

    Args:
        teacher: its parameters' names are the student's.
        student: may have more.
        momentum: share of the old teacher in the new one.
        when: 0-d bool on the parameters' device; where it is False the teacher stays as it is, to the last bit.

    Buffers stay the teacher's own: batch norm statistics come from what the teacher saw, and averaging an integer
    buffer (Swin's ``relative_position_index``) would turn it into zeros without an error.
    """
    theirs = dict(student.named_parameters())
    pairs = [(parameter, theirs[name]) for name, parameter in teacher.named_parameters()]
    mine: list[Tensor] = [parameter for parameter, _ in pairs]
    other = [parameter.detach() for _, parameter in pairs]
    # Interpolation, not two products: where the student stands still, so does the teacher, to the last bit.
    if when is None:
        torch._foreach_lerp_(mine, other, 1 - momentum)
    else:
        move_(mine, torch._foreach_lerp(mine, other, 1 - momentum), when)


def check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Raise if the two share storage: a teacher that moves with its student collapses at loss = ln(prototypes).

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
