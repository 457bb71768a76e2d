"""Loaders for training and evaluation: `ImageDataModule`, and what it is made of."""

from esvit_pl.data.dense import DenseLoaders
from esvit_pl.data.loaders import batch_size_of, limited
from esvit_pl.data.module import ImageDataModule
from esvit_pl.data.samplers import EpochSampler, RankShare

__all__ = ["DenseLoaders", "EpochSampler", "ImageDataModule", "RankShare", "batch_size_of", "limited"]
