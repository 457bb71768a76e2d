"""What is learnt: objectives of one contract."""

from esvit_pl.objectives.byol import BYOLObjective
from esvit_pl.objectives.densecl import DenseCLObjective
from esvit_pl.objectives.esvit import EsViTObjective
from esvit_pl.objectives.ibot import IBOTObjective
from esvit_pl.objectives.igpt import IGPTObjective
from esvit_pl.objectives.interface import Losses, Objective, Progress, Views, Window
from esvit_pl.objectives.moby import MoBYObjective
from esvit_pl.objectives.mocov3 import MoCoV3Objective
from esvit_pl.objectives.mpp import MPPObjective
from esvit_pl.objectives.simclr import SimCLRObjective
from esvit_pl.objectives.simmim import SimMIMObjective
from esvit_pl.objectives.swav import SwAVObjective
from esvit_pl.objectives.with_regions import WithRegionsObjective

__all__ = [
    "BYOLObjective",
    "DenseCLObjective",
    "EsViTObjective",
    "IBOTObjective",
    "IGPTObjective",
    "Losses",
    "MPPObjective",
    "MoBYObjective",
    "MoCoV3Objective",
    "Objective",
    "Progress",
    "SimCLRObjective",
    "SimMIMObjective",
    "SwAVObjective",
    "Views",
    "Window",
    "WithRegionsObjective",
]
