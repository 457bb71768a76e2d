from __future__ import annotations

import pytest
import toys

from benchmarks.roofline import bounds
from esvit_pl.backbones import build
from esvit_pl.profiling.data_sheets import DATA_SHEETS, DataSheet
from esvit_pl.profiling.recipe import model_flops

ENDLESS = float("inf")
TIMES = 4  # of a step for one of a forward pass: three times the student's, once the teacher's; they see the same here


@pytest.fixture
def toy():
    """One block on 2 x 2 patches of 4 px in one window: 4 tokens of 8 channels, MLP of 32; two heads, 16 prototypes."""
    backbone = build("swin", embed_dim=8, depths=[1], num_heads=[2], window=2, img_size=8, patch_size=4)
    return backbone, toys.objective(num_prototypes=16, hidden_dim=6, out_dim=5, num_layers=2)


def parts(toy, **sheet):
    return {row.part: row for row in bounds(*toy, [8], 1, batch_size=3, sheet=DataSheet(**sheet))}


def test_operations_and_moved_numbers_by_hand(toy):
    found = parts(toy, tflops=1.0, gbytes=1.0)

    def layer(rows, fan_in, fan_out):
        return rows * fan_in + fan_in * fan_out + rows * fan_out

    tokens = 3 * 4  # of three images
    patches = 3 * 3 * 8 * 8 + 8 * 3 * 4 * 4 + tokens * 8
    block = layer(tokens, 8, 24) + layer(tokens, 8, 8) + layer(tokens, 8, 32) + layer(tokens, 32, 8)
    heads = sum(layer(rows, 8, 6) + layer(rows, 6, 5) for rows in (3, tokens))
    assert found["layers"].moved_bytes == 2 * TIMES * (patches + block + heads)
    # 3 windows x 2 heads, queries, keys, values, results and weights of 4 x 4 each: the weights stay on the chip.
    assert found["attention"].moved_bytes == 2 * TIMES * 6 * 4 * 16
    # Projections and prototypes; the view head's 3 rows of logits are fewer numbers than its prototypes.
    assert found["losses"].moved_bytes == 2 * TIMES * (3 * 5 + 3 * 16 + tokens * 5 + 16 * 5)
    assert found["losses"].operations == 2 * TIMES * (3 + tokens) * 5 * 16
    assert found["all products"].operations == 3 * model_flops(*toy, [8], 1)
    *some, together = found.values()
    for field in ("operations", "moved_bytes", "at_least_seconds"):
        assert getattr(together, field) == pytest.approx(sum(getattr(part, field) for part in some))


def test_the_slower_of_computing_and_memory_counts(toy):
    computing = parts(toy, tflops=1.0, gbytes=ENDLESS)["all products"]
    assert computing.at_least_seconds == pytest.approx(computing.operations / 1e12)
    assert (computing.memory_bound_share, computing.utilization_share) == (0.0, pytest.approx(1.0))
    assert computing.images_per_second == pytest.approx(3e12 / computing.operations)
    moving = parts(toy, tflops=ENDLESS, gbytes=200.0)["all products"]
    assert moving.at_least_seconds == pytest.approx(moving.moved_bytes / 200e9)
    assert (moving.memory_bound_share, moving.utilization_share) == (1.0, 0.0)
    # Each product waits for its own: together they take longer than either.
    both = parts(toy, tflops=1.0, gbytes=200.0)["all products"]
    assert 0 < both.memory_bound_share < 1
    assert both.at_least_seconds > max(computing.at_least_seconds, moving.at_least_seconds)


def test_wide_layers_are_bound_by_their_operations():
    def last(name, **spec):
        objective = toys.objective(num_prototypes=1024)
        *_, row = bounds(build(name, **spec), objective, [224], 1, batch_size=64, sheet=DATA_SHEETS["H100"])
        return row

    narrow, wide = last("swin", window=7), last("swin", window=7, embed_dim=192, num_heads=[6, 12, 24, 48])
    assert narrow.utilization_share < wide.utilization_share < 1
    assert narrow.memory_bound_share > wide.memory_bound_share
