"""Data sets: `(image, label or None)` by index, as `Splits` of training, bank and query."""

from esvit_pl.datasets.bad_images import Reading, SkippedImage, readable
from esvit_pl.datasets.checking import CheckReport, check
from esvit_pl.datasets.cifar10 import cifar10
from esvit_pl.datasets.decode import decode
from esvit_pl.datasets.folder import FolderDataset, folder, imagenet
from esvit_pl.datasets.interface import (
    UNKNOWN,
    UNREADABLE_METADATA,
    ArrayDataset,
    ImageDataset,
    Joined,
    Picture,
    Splits,
    Subset,
    split_by_name,
)
from esvit_pl.datasets.keypoints import KeypointPair, KeypointSplits, spair71k
from esvit_pl.datasets.mosaics import Mosaics, photograph_mosaics
from esvit_pl.datasets.own import splits_of
from esvit_pl.datasets.photographs import FREE_TO_SHOW, photograph_windows, photographs
from esvit_pl.datasets.pixels import PixelRules, UnreadableMetadata
from esvit_pl.datasets.segmentation import MaskedImages, SegmentationSplits, ade20k, voc2012
from esvit_pl.datasets.table import table

__all__ = [
    "FREE_TO_SHOW",
    "UNKNOWN",
    "UNREADABLE_METADATA",
    "ArrayDataset",
    "CheckReport",
    "FolderDataset",
    "ImageDataset",
    "Joined",
    "KeypointPair",
    "KeypointSplits",
    "MaskedImages",
    "Mosaics",
    "Picture",
    "PixelRules",
    "Reading",
    "SegmentationSplits",
    "SkippedImage",
    "Splits",
    "Subset",
    "UnreadableMetadata",
    "ade20k",
    "check",
    "cifar10",
    "decode",
    "folder",
    "imagenet",
    "photograph_mosaics",
    "photograph_windows",
    "photographs",
    "readable",
    "spair71k",
    "split_by_name",
    "splits_of",
    "table",
    "voc2012",
]
