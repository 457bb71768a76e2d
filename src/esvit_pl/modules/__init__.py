"""LightningModules: the pretrainer and the two evaluators."""

from esvit_pl.modules.knn import KNNEvaluator
from esvit_pl.modules.linear import LinearProbe
from esvit_pl.modules.pretrain import NonFiniteLoss, Pretrainer

__all__ = ["KNNEvaluator", "LinearProbe", "NonFiniteLoss", "Pretrainer"]
