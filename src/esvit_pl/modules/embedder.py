"""Features to the disk, under a Trainer."""

# b images | d channels | h, w rows and columns of regions

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from esvit_pl.backbones import Backbone
from esvit_pl.distributed import sum_over_ranks
from esvit_pl.evaluation.stored import Writer


class Embedder(LightningModule):
    """Writes what a frozen backbone makes of images: ``trainer.validate(Embedder(...), datamodule)``.

    On the trainer's device, in its precision, on all its processes; batches are those of ``ImageDataModule``, a dict
    with ``image`` and ``index``.

    >>> import esvit_pl, torch
    >>> from esvit_pl.evaluation.stored import FeatureFolder
    >>> swin = esvit_pl.build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window=4, img_size=32)
    >>> folder = FeatureFolder("features.partial", {}, number=2)
    >>> module = Embedder(swin, folder.writer, numbers=[0, 1], blocks=2, regions=True)
    >>> {kind: tuple(rows.shape) for kind, rows in module.features(torch.rand(2, 3, 32, 32)).items()}
    {'pooled': (2, 16), 'blocks2': (2, 24), 'regions': (2, 4, 4, 16)}

    Args:
        backbone: in eval mode from here on.
        writer: makes the writer of this process.
        numbers: of the images of the loader in the file: ``index`` 0 is image numbers[0].
        blocks: also the last so many blocks' pooled features; 0: none.
        regions: also the region maps.
        dtype: of the numbers that are written.
    """

    def __init__(
        self,
        backbone: Backbone,
        writer: Callable[[], Writer],
        numbers: Sequence[int] | np.ndarray,
        *,
        blocks: int = 0,
        regions: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval()
        self.blocks, self.regions, self.written = blocks, regions, dtype
        self._numbers = np.asarray(numbers)
        self._make = writer
        self._writer: Writer | None = None

    def on_validation_start(self) -> None:
        self._writer = self._make()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        features = self.features(batch["image"])
        rows = {kind: part.to(self.written).cpu().numpy() for kind, part in features.items()}
        assert self._writer is not None
        self._writer.add(self._numbers[batch["index"].cpu().numpy()], rows)

    def on_validation_epoch_end(self) -> None:
        sum_over_ranks(torch.zeros(1, device=self.device))  # no rank goes on before all have written

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """{kind: (b ...)} of images (b c h w)."""
        output = self.backbone(images)
        found = {"pooled": output.pooled}
        if self.blocks:
            found[f"blocks{self.blocks}"] = self.backbone.last_blocks(images, self.blocks)
        if self.regions:
            found["regions"] = output.regions.unflatten(1, output.grid)
        return found
