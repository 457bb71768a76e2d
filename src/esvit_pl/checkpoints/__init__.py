"""Doors to checkpoint formats: `read_checkpoint` and `load_backbone` recognise them all."""

from esvit_pl.checkpoints.build_backbone import backbone_of, load_backbone
from esvit_pl.checkpoints.checkpoint import Checkpoint
from esvit_pl.checkpoints.locate import last_checkpoint
from esvit_pl.checkpoints.recognise import read_checkpoint

__all__ = ["Checkpoint", "backbone_of", "last_checkpoint", "load_backbone", "read_checkpoint"]
