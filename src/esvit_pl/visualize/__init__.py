"""Pictures: arrays first, ink last."""

from esvit_pl.visualize.figures import comparison, crops, learning_curve, save, sweep

__all__ = ["comparison", "crops", "learning_curve", "save", "sweep"]
