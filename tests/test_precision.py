from __future__ import annotations

import pytest
import torch

from esvit_pl.precision import wide


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
    + [(torch.float64, torch.float64)],
    ids=str,
)
def test_never_narrower_than_float32_and_never_narrowed(given, expected):
    assert wide(torch.ones(2, dtype=given)).dtype == expected
