"""Doors to checkpoint formats: `read_source` and `load_backbone` recognise them all."""

from esvit_pl.checkpoints.loading import load_backbone, read_source
from esvit_pl.checkpoints.source import Source

__all__ = ["Source", "load_backbone", "read_source"]
