"""Doors to checkpoint formats: `read_source` and `load_backbone` recognise them all."""

from esvit_pl.checkpoints.loading import backbone_of, load_backbone, read_source
from esvit_pl.checkpoints.source import Source

__all__ = ["Source", "backbone_of", "load_backbone", "read_source"]
