from __future__ import annotations

import torch

from esvit_pl.benchmarks.vil import attention_costs, peak_bytes


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


def test_memory_of_sliding_attention_grows_with_the_tokens_and_of_the_full_one_with_their_square():
    costs = {
        (cost.form, cost.side): cost
        for cost in attention_costs(sides=(12, 24), dim=4, num_heads=1, window=2, batch_size=1, repeats=1)
    }
    assert len(costs) == 8
    assert min(cost.seconds for cost in costs.values()) > 0
    growth = {form: costs[form, 24].peak_bytes / costs[form, 12].peak_bytes for form, _ in costs}
    assert growth["full"] > 12
    for mode in (0, 1, -1):
        assert growth[f"sliding, mode {mode}"] < 5
    assert costs["sliding, mode 0", 24].peak_bytes < costs["full", 24].peak_bytes / 4
