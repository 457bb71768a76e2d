from __future__ import annotations

import pytest

from esvit_pl.benchmarks import step_seconds


def test_every_part_of_the_step_is_timed():
    parts = step_seconds(batch_size=1, num_prototypes=16, repeats=1, sides=(32, 32, 32))
    assert list(parts)[-1] == "whole step"
    assert len(parts) == 6
    assert min(parts.values()) > 0
    assert parts["whole step"] == pytest.approx(sum(list(parts.values())[:-1]))
