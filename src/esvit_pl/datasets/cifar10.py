"""CIFAR-10: 50,000 training and 10,000 test pictures of 32 x 32 pixels, ten classes."""

from __future__ import annotations

from pathlib import Path

import torch

from esvit_pl.datasets.interface import ArrayDataset, Splits


def cifar10(root: str | Path = "data/cifar10", *, download: bool = True) -> Splits:
    """Read CIFAR-10 through torchvision from `root`; 180 MB in memory. The test images are the query.

    Args:
        download: download it (170 MB) if it is not in `root` yet.

    Raises:
        ValueError: it is not in `root`, and downloading is off or has failed.
    """
    from torchvision.datasets import CIFAR10

    def part(train: bool) -> tuple[ArrayDataset, list[str]]:
        try:
            data = CIFAR10(root, train=train, download=download)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"CIFAR-10 is not complete in '{root}' (download={download}): {error}. "
                f"Unpack cifar-10-python.tar.gz there, so that '{root}/cifar-10-batches-py' exists"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # channels last in memory, as decoded files are
        names = [f"{'train' if train else 'test'}/{index:05d}" for index in range(len(images))]
        return ArrayDataset(images, names, data.targets), list(data.classes)

    train, classes = part(train=True)
    return Splits(train, part(train=False)[0], classes)
