from __future__ import annotations

import gc

from esvit_pl.data.workers import sharing_memory


def test_objects_that_loading_processes_share_are_not_written_to_by_the_collector():
    before = gc.get_freeze_count()
    with sharing_memory():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == before == 0


def test_objects_that_somebody_else_has_frozen_stay_frozen():
    gc.freeze()
    try:
        with sharing_memory():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
