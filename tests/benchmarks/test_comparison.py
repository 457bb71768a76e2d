from __future__ import annotations

import pytest
import torch

from benchmarks import comparison
from benchmarks.comparison import compare, compared, relative_error


def test_both_forms_run_in_turn_and_ratios_are_paired(monkeypatch):
    took, calls = iter([4.0, 1.0, 9.0, 3.0, 8.0, 4.0]), []
    monkeypatch.setattr(comparison, "seconds", lambda form, device: (form(), next(took))[1])
    monkeypatch.setattr(comparison, "peak_bytes", lambda form, device: 600 if form()[0] is one else 200)
    one, two = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    found = compare("part", lambda: calls.append("straight") or [one], lambda: calls.append("ours") or [two], repeats=3)
    assert calls[-6:] == ["straight", "ours"] * 3
    assert (found.straight_seconds, found.our_seconds) == (8.0, 3.0)
    assert found.ratio == 3.0  # of 4, 3, 2; the quotient of the medians would be 2.67
    assert (found.straight_bytes, found.our_bytes, found.bytes_ratio) == (600, 200, 3.0)
    assert found.error == pytest.approx(0.1)


def test_forms_that_draw_random_numbers_draw_the_same():
    def form():
        return [torch.randn(5)]

    assert compare("noise", form, form, repeats=1, memory=False).error == 0.0


def test_what_was_not_measured_is_none():
    found = compared("part", [(1.0, 2.0)])
    assert (found.ratio, found.straight_bytes, found.our_bytes, found.bytes_ratio, found.error) == (0.5, *[None] * 4)


def test_the_error_is_the_largest_of_all_tensors():
    wanted = [torch.tensor([3.0, 4.0]), torch.tensor(2.0)]
    assert relative_error([torch.tensor([3.0, 4.0]), torch.tensor(2.5)], wanted) == 0.25
    assert relative_error(wanted, wanted) == 0
