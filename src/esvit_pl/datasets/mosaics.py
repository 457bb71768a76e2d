"""Images with several things in them: mosaics of the patches of `photographs`."""

# s side of a mosaic in patches

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from esvit_pl.datasets.interface import ImageDataset, Splits
from esvit_pl.datasets.photographs import photographs
from esvit_pl.seeding import derive_seed


class Mosaics(ImageDataset):
    """Mosaic number i shows image i and others, in s rows of s, as a seed has shuffled them. It has no label.

    >>> from esvit_pl.datasets import ArrayDataset
    >>> patches = ArrayDataset(torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 2, 2), list("abcde"))
    >>> mosaics = Mosaics(patches, side=2)
    >>> len(mosaics), tuple(mosaics[3][0].shape), mosaics.parts(3).shape
    (5, (3, 4, 4), (2, 2))

    Args:
        images: of one size.
        side: s.
        seed: of the neighbours and of the places.
    """

    labels = None

    def __init__(self, images: ImageDataset, *, side: int = 2, seed: int = 0) -> None:
        if side < 1:
            raise ValueError(f"a mosaic needs a side of 1 image or more, got {side}")
        self.images, self.side, self.seed = images, side, seed

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, index: int) -> np.ndarray:
        """(s s) numbers of the images that a mosaic shows."""
        generator = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "mosaic", index)))
        others = generator.integers(len(self.images), size=self.side**2 - 1)
        shown: np.ndarray = generator.permutation([index, *others]).reshape(self.side, self.side)
        return shown

    def __getitem__(self, index: int) -> tuple[Tensor, None]:
        rows = [torch.cat([self.images[int(part)][0] for part in row], dim=2) for row in self.parts(index)]
        return torch.cat(rows, dim=1), None

    def name(self, index: int) -> str:
        return f"mosaic/{self.images.name(index)}"

    def content_digest(self) -> str | None:
        return self.images.content_digest()


def photograph_mosaics(*, train_patches: int = 250, test_patches: int = 60, side: int = 2, seed: int = 0) -> Splits:
    """Pretraining sees mosaics of the training patches of `photographs`; bank and query are the single patches.

    Pairs of views, whose correspondence is measured, are cut from mosaics of the test patches. A mosaic is uint8
    (3 32s 32s).
    """
    patches = photographs(train_patches=train_patches, test_patches=test_patches, seed=seed)
    assert patches.val is not None
    return replace(
        patches,
        seen=Mosaics(patches.train, side=side, seed=seed),
        paired=Mosaics(patches.val, side=side, seed=seed),
        notes=(f"pretraining sees mosaics of {side} x {side} of these images",),
    )
