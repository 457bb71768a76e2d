"""LightningModules: the pretrainer, and evaluators under a Trainer."""

from esvit_pl.modules.evaluation import Evaluation
from esvit_pl.modules.finetune import FineTuning
from esvit_pl.modules.knn import KNNEvaluator
from esvit_pl.modules.linear import LinearProbe
from esvit_pl.modules.pretrain import NonFiniteLoss, Pretrainer

__all__ = ["Evaluation", "FineTuning", "KNNEvaluator", "LinearProbe", "NonFiniteLoss", "Pretrainer"]
