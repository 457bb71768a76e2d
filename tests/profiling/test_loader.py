from __future__ import annotations

import pytest

from esvit_pl.profiling import loader


@pytest.mark.parametrize(("workers", "measured"), [(0, 4), (3, 12)])
def test_a_loader_is_timed_after_two_batches_of_each_process(monkeypatch, workers, measured):
    taken = []

    def timed(run):
        before = len(taken)
        run()
        assert len(taken) - before == measured
        return 0.5

    def batches():
        for number in range(loader.batches_needed(workers)):
            taken.append(number)
            yield number

    monkeypatch.setattr(loader, "seconds", timed)
    assert loader.loader_rate(batches(), batch_size=8, num_workers=workers) == measured * 8 / 0.5
