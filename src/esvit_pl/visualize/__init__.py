"""Pictures: arrays first, ink last."""

from esvit_pl.visualize.figures import (
    Model,
    accuracy_against_throughput,
    comparison,
    crops,
    learning_curve,
    save,
    sweep,
)

__all__ = [
    "Model",
    "accuracy_against_throughput",
    "comparison",
    "crops",
    "learning_curve",
    "save",
    "sweep",
]
