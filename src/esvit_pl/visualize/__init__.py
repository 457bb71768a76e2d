"""Pictures: arrays first, ink last."""

from esvit_pl.visualize.figures.comparison import comparison
from esvit_pl.visualize.figures.crops import crops
from esvit_pl.visualize.figures.learning_curve import learning_curve
from esvit_pl.visualize.figures.neighbours import neighbours
from esvit_pl.visualize.figures.style import save
from esvit_pl.visualize.figures.sweep import sweep
from esvit_pl.visualize.figures.throughput import Model, accuracy_against_throughput

__all__ = [
    "Model",
    "accuracy_against_throughput",
    "comparison",
    "crops",
    "learning_curve",
    "neighbours",
    "save",
    "sweep",
]
