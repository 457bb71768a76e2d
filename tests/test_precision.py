from __future__ import annotations

import pytest
import torch

from esvit_pl.precision import factors, narrow, wide


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
    + [(torch.float64, torch.float64)],
    ids=str,
)
def test_never_narrower_than_float32_and_never_narrowed(given, expected):
    assert wide(torch.ones(2, dtype=given)).dtype == expected


def test_factors_are_those_of_autocast():
    assert (factors("cpu"), factors("meta")) == (torch.float32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert (factors("cpu"), factors("meta")) == (torch.bfloat16, torch.float32)


def test_narrow_is_what_a_product_would_make_of_it():
    x = torch.randn(3, 4)
    assert narrow(x) is x
    assert narrow(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(x).dtype == torch.bfloat16
        assert torch.equal(narrow(x) @ narrow(x).mT, x @ x.mT)
        assert narrow(x.to("meta")).dtype == torch.float32
        assert narrow(x.double()).dtype == (x.double() @ x.double().mT).dtype == torch.float64
