from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from esvit_pl.guard import LateFlag, move_

STRANGE = [0.0, -0.0, 1.5, -1e-45, math.inf, -math.inf, math.nan]


def bits(x: torch.Tensor) -> list[int]:
    return x.view(torch.int32).flatten().tolist()


@pytest.mark.parametrize("moved", [0.0, -1.0, math.nan, math.inf])
def test_what_may_not_move_stays_to_the_last_bit(moved):
    """Also -0, which any sum with 0 would turn into 0, and beside nan, which no product with 0 keeps away."""
    x = torch.tensor(STRANGE)
    before = bits(x)
    move_([x], [torch.full_like(x, moved)], torch.tensor(False))
    assert bits(x) == before


def test_what_may_move_is_what_it_was_told_to_the_last_bit():
    x, y = torch.zeros(7), torch.zeros(2, 3, dtype=torch.float64).mT
    new = torch.randn(3, 2, dtype=torch.float64)
    strange = torch.tensor(STRANGE)
    move_([x, y], [strange, new], torch.tensor(True))
    assert bits(x) == bits(strange)
    assert torch.equal(y, new)


def test_a_parameter_moves_without_a_graph():
    parameter = torch.nn.Parameter(torch.zeros(2))
    move_([parameter], [torch.ones(2)], torch.tensor(True))
    assert parameter.tolist() == [1.0, 1.0]
    assert parameter.is_leaf


class Nothing(TorchDispatchMode):
    """No operation of torch at all."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(str(func))


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_is_read_without_an_operation_and_more_than_once(value):
    flag = torch.tensor(value)
    late = LateFlag(flag)
    flag.logical_not_()  # the device goes on
    with Nothing():
        assert late.read() is late.read() is value
