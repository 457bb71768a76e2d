from __future__ import annotations

import pytest
import torch
import toys
from torch import nn

from esvit_pl.backbones import build
from esvit_pl.ema import check_apart, ema_update_, make_teacher


def batch_norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def swin() -> nn.Module:
    return build("swin", embed_dim=8, depths=[2, 2], num_heads=[1, 2], window=4, img_size=32, drop_path_rate=0.2)


def test_update_by_hand():
    student, teacher = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(student.weight, 1.0)
    nn.init.constant_(teacher.weight, 3.0)
    ema_update_(teacher, student, 0.75)
    assert teacher.weight.item() == 2.5


def test_all_parameters_move_at_once():
    def launches(layers: int) -> int:
        student = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
        teacher = make_teacher(student)
        with toys.Launches() as launched:
            ema_update_(teacher, student, 0.5)
        return launched.number

    assert launches(9) == launches(2) == 1


@pytest.mark.parametrize("make", [batch_norm_net, swin])
def test_after_three_updates_every_buffer_of_the_teacher_is_its_own(make):
    """Averaging integer buffers turns relative_position_index into zeros, and no error is raised."""
    student = make()
    teacher = make_teacher(student)
    before = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    assert before
    start = [parameter.clone() for parameter in student.parameters()]
    for _ in range(3):
        for tensor in (*student.parameters(), *student.buffers()):
            tensor.data = tensor.data + 1
        ema_update_(teacher, student, 0.5)
    for name, buffer in teacher.named_buffers():
        assert torch.equal(buffer, before[name]), name
    for mine, first in zip(teacher.parameters(), start, strict=True):
        assert torch.allclose(mine, first + 2.125, atol=1e-5)  # 0.5, then (0.5 + 2) / 2, then (1.25 + 3) / 2


def test_where_the_student_stands_still_so_does_the_teacher_to_the_last_bit():
    student = nn.Linear(50, 50)
    teacher = make_teacher(student)
    before = teacher.weight.clone()
    for momentum in (0.996, 0.3, 1 / 3):
        ema_update_(teacher, student, momentum)
    assert torch.equal(teacher.weight, before)


def test_momentum_one_moves_nothing_and_parts_of_the_student_alone_are_passed_over():
    student, teacher = batch_norm_net(), make_teacher(batch_norm_net())
    before = teacher[0].weight.clone()
    ema_update_(teacher, nn.ModuleDict({"0": student[0], "1": student[1], "predictor": nn.Linear(1, 1)}), 1.0)
    assert torch.equal(teacher[0].weight, before)


def test_the_teacher_learns_nothing_by_gradient_and_drops_no_paths():
    student = swin()
    teacher = make_teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher.train()(x).pooled, teacher.train()(x).pooled)
    assert not torch.equal(student.train()(x).pooled, student.train()(x).pooled)


def test_a_teacher_that_shares_storage_is_refused():
    student = batch_norm_net()
    with pytest.raises(ValueError, match=r"shares storage.*teacher '0.weight' is student '0.weight'"):
        check_apart(student, student)
    check_apart(make_teacher(student), student)
