"""Doors to checkpoint formats."""

from esvit_pl.checkpoints.training import load_backbone, load_training_checkpoint

__all__ = ["load_backbone", "load_training_checkpoint"]
