"""How a Trainer writes and reads checkpoints: each file is whole, and is checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.whole import replacing


class WholeCheckpoints(CheckpointIO):
    """Writes each checkpoint beside its place, flushes it to the disk, and renames it; reads weights and plain Python.

    Lightning's own class writes into ``TMPDIR`` and moves the file from there. Between two disks that is a copy, and a
    process that is killed in it leaves half a file in place of the last good one. It also reads files whose bits have
    changed since they were written.

    >>> from pytorch_lightning import Trainer
    >>> trainer = Trainer(plugins=[WholeCheckpoints()], logger=False, enable_progress_bar=False)

    Raises:
        OSError: a file cannot be written, for a full disk say; the file that was there before it stays as it is.
        ValueError: a file to read is damaged, or holds more than weights and plain Python.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError("WholeCheckpoints writes local files, which have no storage_options")
        try:
            with replacing(path) as draft, draft.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else error.__context__  # torch hides what the disk has said
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content: dict[str, Any] = read_pickled(path)
        return content

    @rank_zero_only
    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
