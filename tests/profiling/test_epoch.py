from __future__ import annotations

import time

import toys

from esvit_pl.profiling.epoch import batch_seconds, micro_batch_seconds, step_seconds
from esvit_pl.profiling.loader import batches_needed
from esvit_pl.profiling.memory import PRECISIONS


class Slow:
    """Batches that take a hundredth of a second each, for ever."""

    def __iter__(self):
        while True:
            time.sleep(0.01)
            yield None


def test_a_loader_is_timed_on_a_few_of_its_batches() -> None:
    assert 0.01 <= batch_seconds(Slow(), batch_size=8, num_workers=0) < 1
    assert batches_needed(0) < 20


def test_steps_are_timed_with_the_weights_that_they_move() -> None:
    module = toys.pretrainer()
    before = toys.state(module)
    took = step_seconds(
        module.step, module.optimizer, toys.SIDES, batch_size=2, precision=PRECISIONS["bf16-mixed"], repeats=1
    )
    assert 0 < took < 60
    assert toys.largest_difference(before, toys.state(module)) > 0


def test_loading_and_computing_share_the_processors_of_a_cpu() -> None:
    assert micro_batch_seconds(2.0, 3.0, at_once=False) == 5.0
    assert micro_batch_seconds(2.0, 3.0, at_once=True) == 3.0
