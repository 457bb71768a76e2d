from __future__ import annotations

import pytest

from esvit_pl.callbacks.intervals import FEW, check_interval, checkpoint_interval, is_due


@pytest.mark.parametrize(("every", "last", "due"), [(1, 5, [0, 1, 2, 3, 4]), (2, 5, [1, 3, 4]), (9, -1, [8])])
def test_is_due(every, last, due) -> None:
    class AtEpoch:
        max_epochs = last

        def __init__(self, epoch: int) -> None:
            self.current_epoch = epoch

    assert [epoch for epoch in range(last if last > 0 else 12) if is_due(AtEpoch(epoch), every)] == due
    with pytest.raises(ValueError, match="X needs every_n_epochs of 1 or more, got 0"):
        check_interval("X", 0)


def test_numbered_checkpoints_are_few_however_long_the_training() -> None:
    intervals = [checkpoint_interval(epochs) for epochs in range(3000)]
    assert all(epochs // every <= FEW for epochs, every in enumerate(intervals))
    assert intervals == sorted(intervals)
    assert set(intervals) == {10, 20, 50, 100, 200, 500}
