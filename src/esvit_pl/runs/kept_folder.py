"""The folder of a run that somebody removes while it trains."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback

from esvit_pl.runs.folder import RunFolder


class KeptFolder(Callback):
    """Makes the folder of a run again before something is saved in it, see `RunFolder.make_again`."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.run.make_again()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.run.make_again()
