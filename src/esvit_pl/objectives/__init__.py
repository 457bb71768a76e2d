"""What is learnt: objectives of one contract."""

from esvit_pl.objectives.esvit import EsViTObjective
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window

__all__ = ["EsViTObjective", "Losses", "Objective", "Progress", "Views", "Window"]
