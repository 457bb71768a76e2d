from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from esvit_pl.augment import Recipe
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.loggers import MetricsCSV

RECIPE = Recipe(global_size=32, local_size=16, num_local=2)


def fit(root: Path, ckpt_path: Path | None = None, **options: Any) -> None:
    """Saves after every step, by Lightning's own callback, and at the end of every epoch."""
    each = ModelCheckpoint(root, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    epochs = ModelCheckpoint(root / "epochs", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    parts = {"callbacks": [each, epochs], "enable_checkpointing": True, "logger": MetricsCSV(root)}
    images = torch.randint(256, (13, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    splits = Splits(ArrayDataset(images, [f"{i}.png" for i in range(13)]))
    data = ImageDataModule(splits, RECIPE, batch_size=4, num_workers=0)
    trainer = toys.trainer(root, log_every_n_steps=1, **parts, **options)
    trainer.fit(toys.pretrainer(), datamodule=data, ckpt_path=ckpt_path, weights_only=True)


def differences(was: Any, now: Any, where: str = "") -> list[str]:
    """Places at which two checkpoints differ, to the last bit."""
    if isinstance(was, torch.Tensor):
        return [] if torch.equal(was, now) and was.dtype == now.dtype else [where]
    if isinstance(was, dict):
        assert was.keys() == now.keys()
        return [place for key in was for place in differences(was[key], now[key], f"{where}/{key}")]
    if isinstance(was, list):
        assert len(was) == len(now)
        return [
            place for i, pair in enumerate(zip(was, now, strict=True)) for place in differences(*pair, f"{where}/{i}")
        ]
    return [] if was == now else [f"{where}: {was} and {now}"]


def saved(path: Path) -> dict[str, Any]:
    """Weights, optimizer, objective, every counter; without what Lightning's callback remembers of its folder."""
    content = torch.load(path, weights_only=True)
    del content["callbacks"]
    return content


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if not row["name"].startswith("time/")]


@pytest.mark.filterwarnings("ignore:.*no `validation_step`", "ignore:.*dirpath has changed")
@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2},
        {"max_epochs": -1, "max_steps": 5},  # ends in the middle of the second epoch
        {"max_epochs": 1, "precision": "64-true"},
        {"max_epochs": 3, "accumulate_grad_batches": 3},  # one step an epoch
    ],
    ids=["epochs", "steps", "float64", "accumulated"],
)
def test_resumed_from_any_step_a_training_ends_as_without_a_break(tmp_path, options):
    whole = tmp_path / "whole"
    fit(whole, **options)
    checkpoints = [*whole.glob("*.ckpt"), *whole.glob("epochs/*.ckpt")]
    last = max((path for path in checkpoints if path.parent == whole), key=lambda path: int(path.stem))
    wanted, logged = saved(last), rows(whole)
    begun = [path for path in checkpoints if saved(path)["global_step"] < int(last.stem)]
    assert len(begun) >= int(last.stem) - 1  # every step but the last, and the end of an epoch
    for path in begun:
        again = tmp_path / path.parent.name / f"from {path.stem}"
        fit(again, path, **options)
        assert differences(wanted, saved(again / last.name)) == []
        new = rows(again)
        assert new == logged[-len(new) :]
        assert len({row["step"] for row in new}) == int(last.stem) - saved(path)["global_step"]
    assert len(differences(wanted, saved(begun[0]))) > 100  # that comparison can fail


def test_a_module_without_a_data_module_of_ours_is_at_its_place_too(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    trainer = toys.trainer(tmp_path, callbacks=[saver], enable_checkpointing=True, max_epochs=2)
    trainer.fit(toys.pretrainer(), DataLoader(toys.Noise(24), batch_size=8))
    loops = {path.name: torch.load(path, weights_only=True)["loops"]["fit_loop"] for path in tmp_path.glob("*.ckpt")}
    after_four = loops["epoch=1-step=4.ckpt"]
    assert after_four["epoch_progress"]["current"] == {"ready": 2, "completed": 1, "started": 2, "processed": 1}
    batches = after_four["epoch_loop.batch_progress"]
    assert (set(batches["total"].values()), set(batches["current"].values())) == ({4}, {1})
    assert after_four["epoch_loop.state_dict"]["_batches_that_stepped"] == 4
    after_six = loops["epoch=1-step=6.ckpt"]
    assert set(after_six["epoch_progress"]["total"].values()) == {2}
    assert set(after_six["epoch_loop.batch_progress"]["current"].values()) == {0}
