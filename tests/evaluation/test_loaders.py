from __future__ import annotations

import pytest
from pytorch_lightning import LightningDataModule

from esvit_pl.evaluation.loaders import find_loader


def test_find_loader_looks_in_the_data_module_first() -> None:
    class Owner:
        def __init__(self, name: str) -> None:
            self.name = name

        def bank_dataloader(self) -> list[str]:
            return [self.name]

    class WithData:
        datamodule = Owner("data module")

    class Without:
        datamodule = None

    assert find_loader("X", WithData(), Owner("module"), "bank")() == ["data module"]
    assert find_loader("X", Without(), Owner("module"), "bank")() == ["module"]
    assert find_loader("X", Without(), None, [1, 2])() == [1, 2]
    with pytest.raises(
        ValueError, match=r"looks for query_dataloader\(\) in Owner, and found bank_dataloader; name one"
    ):
        find_loader("X", Without(), Owner("module"), "query")


def test_train_and_val_are_the_loaders_that_fit_was_given() -> None:
    class Fit:
        datamodule = None
        train_dataloader = range(1)
        val_dataloaders: object = [range(2)]

    given = Fit()
    assert find_loader("X", given, None, "train")() == range(1)
    assert find_loader("X", given, None, "val")() == range(2)
    given.val_dataloaders = [range(2), range(3)]
    with pytest.raises(ValueError, match="X looks for the loader 'val' that fit was given, and it was given several"):
        find_loader("X", given, None, "val")()
    given.val_dataloaders = None
    with pytest.raises(ValueError, match=r"given no val loaders \(none is read where .* validation_step\); give the"):
        find_loader("X", given, None, "val")()


def test_loaders_that_lightning_only_declares_are_none() -> None:
    class Data(LightningDataModule):
        def val_dataloader(self) -> list[int]:
            return [1]

    class Fit:
        datamodule = Data()

    with pytest.raises(ValueError, match=r"looks for test_dataloader\(\) in Data, and found val_dataloader; name one"):
        find_loader("OnlineKNN", Fit(), None, "test")
