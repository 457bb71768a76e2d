from __future__ import annotations

import pytest
import torch

from esvit_pl.profiling import measure
from esvit_pl.profiling.measure import compare, compared, machine, peak_bytes, relative_error, seconds


def test_peak_counts_what_is_held_at_once():
    def run():
        first = torch.ones(1000)  # 4000 bytes
        second = first + 1
        del first
        third = second.view(10, 100)  # no memory of its own
        third += torch.ones(100)  # 400 bytes, and in place
        del second, third
        torch.ones(500)

    assert peak_bytes(run) == 8000


def test_both_forms_run_in_turn_and_ratios_are_paired(monkeypatch):
    took, calls = iter([4.0, 1.0, 9.0, 3.0, 8.0, 4.0]), []
    monkeypatch.setattr(measure, "seconds", lambda form, device: (form(), next(took))[1])
    monkeypatch.setattr(measure, "peak_bytes", lambda form, device: 600 if form()[0] is one else 200)
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


def test_seconds_are_positive_and_the_machine_has_a_name():
    assert seconds(lambda: torch.ones(10).sum()) > 0
    found = machine()
    assert list(found) == ["cpu", "threads", "torch"]
    assert found["cpu"]
    assert found["threads"] == torch.get_num_threads()
