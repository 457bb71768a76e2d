from __future__ import annotations

import pytest
import toys

from benchmarks.switches import SWITCHES, rows
from esvit_pl.profiling.report import as_markdown


def test_recomputing_takes_less_memory_and_gives_the_same_gradients():
    eager, recomputing = rows(
        **{**toys.FAMILIES["swin"], "depths": [2, 4], "drop_path_rate": 0.2},
        batch_size=2,
        sides=(64, 64, 33),
        repeats=1,
        switches=("grad checkpointing",),
    )
    assert (eager.switches, eager.ratio, eager.error) == ("eager", 1.0, 0.0)
    assert recomputing.error == 0.0
    assert recomputing.peak_bytes < eager.peak_bytes  # most of it is the heads' at this size
    heading = as_markdown([eager, recomputing]).splitlines()[0].strip("| ")
    assert [cell.strip() for cell in heading.split("|")] == [
        "switches",
        "first",
        "pass",
        "ratio",
        "memory, peak",
        "error",
    ]


@pytest.mark.slow
def test_compiled_gradients_are_equal_up_to_rounding():
    table = {row.switches: row for row in rows(**toys.FAMILIES["swin"], batch_size=2, sides=(32, 16), repeats=1)}
    assert list(table) == list(SWITCHES)
    assert 0 < table["compiled"].error < 1e-4
    assert table["both"].error < 1e-4
    assert table["compiled"].peak_bytes is None
