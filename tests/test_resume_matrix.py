"""Trainings that are killed and go on end like uninterrupted ones, to the last bit; the comparison can fail."""

from __future__ import annotations

import pytest
import resume_matrix


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [*resume_matrix.ROWS, *(row for row in resume_matrix.METHODS if row.loss in ("moby", "swav", "ibot", "igpt"))],
    ids=lambda row: row.name,
)
def test_a_killed_training_ends_like_an_uninterrupted_one(tmp_path, row):
    found = resume_matrix.outcome(row, tmp_path)
    assert found.compared > 100
    assert found.rows > (25 if row.theirs else 50)
    if row.again:
        assert len(found.differences) > 100
    else:
        assert len(found.kills) == 2
        assert 0 < found.kills[0] < found.kills[1]
        assert found.differences == []
