from __future__ import annotations

import torch

from esvit_pl.profiling.measure import machine, peak_bytes, seconds


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


def test_seconds_are_positive_and_the_machine_has_a_name():
    assert seconds(lambda: torch.ones(10).sum()) > 0
    found = machine()
    assert list(found) == ["cpu", "threads", "torch"]
    assert found["cpu"]
    assert found["threads"] == torch.get_num_threads()
