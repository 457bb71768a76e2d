"""Training a module with a Trainer in float64, step by step as a golden file has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from golden_files import image
from torch.utils.data import DataLoader, Dataset


class Steps(Dataset):
    """The images of optimizer steps, one after another; epochs follow one another."""

    def __init__(self, settings: dict[str, Any], trainer: pl.Trainer, sides: list[int]) -> None:
        self.settings, self.trainer, self.sides = settings, trainer, sides

    def __len__(self) -> int:
        return self.settings["steps_per_epoch"] * self.settings["batch"]

    def __getitem__(self, i: int) -> dict[str, Any]:
        batch = self.settings["batch"]
        step, row = divmod(self.trainer.current_epoch * len(self) + i, batch)
        views = [image(batch, side, 0.1 * step + 0.7 * v)[row].double() for v, side in enumerate(self.sides)]
        return {"views": views}


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def train(module: pl.LightningModule, settings: dict[str, Any], sides: list[int], folder: Path) -> list[float]:
    """The losses of all steps; `sides` are those of the views."""
    losses = Losses()
    trainer = pl.Trainer(
        max_epochs=settings["epochs"],
        precision="64-true",
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses],
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(Steps(settings, trainer, sides), settings["batch"]))
    return losses.values
