from __future__ import annotations

import gc
from pathlib import Path

import pytest
from commandline import Commands

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


def test_a_pretraining_shares_its_objects_with_its_loading_processes(
    commands: Commands, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    from esvit_pl.data import ImageDataModule

    frozen = []
    loader = ImageDataModule.train_dataloader

    def noting(self: ImageDataModule):
        frozen.append(gc.get_freeze_count())
        return loader(self)

    monkeypatch.setattr(ImageDataModule, "train_dataloader", noting)
    assert commands.pretrain(pictures, "trainer.max_epochs=1", "datamodule.num_workers=1").code == 0
    assert frozen
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0
