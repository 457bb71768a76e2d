from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from esvit_pl.modules.nonfinite import FiniteCheck, LateValue, NonFiniteLoss


class Nothing(TorchDispatchMode):
    """No operation of torch at all."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(str(func))


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_is_read_without_an_operation_and_more_than_once(value):
    flag = torch.tensor(value)
    late = LateValue(flag)
    flag.logical_not_()  # the device goes on
    with Nothing():
        assert late.read() is late.read() is value


def test_every_question_after_a_bad_step_raises():
    check = FiniteCheck()
    check.ask()
    check.note(torch.tensor(True), step=0, epoch=0)
    check.ask()
    check.note(torch.tensor(False), step=1, epoch=0)
    for _ in range(2):
        with pytest.raises(NonFiniteLoss, match=r"optimizer step 1 \(epoch 0\).*resume from the last checkpoint"):
            check.ask()
