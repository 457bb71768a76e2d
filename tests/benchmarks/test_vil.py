from __future__ import annotations

from benchmarks.vil import attention_costs


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
