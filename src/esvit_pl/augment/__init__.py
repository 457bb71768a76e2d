"""From an image to views: a recipe of plain numbers, crops, and colour operations with per-sample parameters."""

from esvit_pl.augment.batch import Batch
from esvit_pl.augment.crop import crop_resize, random_box, resize
from esvit_pl.augment.evaluation import evaluation_view, image_moments, normalize, whole_view
from esvit_pl.augment.pairs import draw_pair, pair_recipe
from esvit_pl.augment.photometric import OFF, ORDERS, PARAMS, apply_color
from esvit_pl.augment.rand_augment import RandAugment
from esvit_pl.augment.recipe import Recipe, ViewRecipe
from esvit_pl.augment.transform import EvaluationTransform
from esvit_pl.augment.views import ViewParameters, cut_views, draw, finish_views, largest_reduction, make_views

__all__ = [
    "OFF",
    "ORDERS",
    "PARAMS",
    "Batch",
    "EvaluationTransform",
    "RandAugment",
    "Recipe",
    "ViewParameters",
    "ViewRecipe",
    "apply_color",
    "crop_resize",
    "cut_views",
    "draw",
    "draw_pair",
    "evaluation_view",
    "finish_views",
    "image_moments",
    "largest_reduction",
    "make_views",
    "normalize",
    "pair_recipe",
    "random_box",
    "resize",
    "whole_view",
]
