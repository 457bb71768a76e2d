from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from esvit_pl.isolation import undisturbed


def draws() -> list[float]:
    return [torch.rand(()).item(), float(np.random.rand()), random.random()]  # noqa: NPY002


def seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)


def test_randomness_and_every_mode_are_as_before() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    module.train()
    module[1][1].eval()  # frozen inside a training module
    seed()
    expected = draws()
    seed()
    with undisturbed(module):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        draws()
    assert draws() == expected
    assert [part.training for part in module.modules()] == [True, True, True, True, False]


def test_also_after_an_error() -> None:
    module = nn.Dropout()
    seed()
    expected = draws()
    seed()

    def fail() -> None:
        draws()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), undisturbed(module):
        fail()
    assert draws() == expected
    assert module.training
