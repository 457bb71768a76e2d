"""Data sets: `(image, label or None)` by index, as `Splits` of training, bank and query."""

from .cifar10 import cifar10
from .folder import FolderDataset, decode, folder, imagenet
from .interface import ArrayDataset, ImageDataset, Splits, Subset, split_by_name
from .photographs import FREE_TO_SHOW, photographs

__all__ = [
    "FREE_TO_SHOW",
    "ArrayDataset",
    "FolderDataset",
    "ImageDataset",
    "Splits",
    "Subset",
    "cifar10",
    "decode",
    "folder",
    "imagenet",
    "photographs",
    "split_by_name",
]
