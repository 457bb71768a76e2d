"""Optimizers: parameter groups, clipping, LARS, and the recipe that says how learning rate and weight decay move."""

from esvit_pl.optim.clipping import clip_each_
from esvit_pl.optim.groups import parameter_groups, parameter_names, restore_
from esvit_pl.optim.lars import LARS
from esvit_pl.optim.recipe import OptimizerRecipe, scaled_lr
from esvit_pl.optim.sgd import FusedSGD

__all__ = [
    "LARS",
    "FusedSGD",
    "OptimizerRecipe",
    "clip_each_",
    "parameter_groups",
    "parameter_names",
    "restore_",
    "scaled_lr",
]
